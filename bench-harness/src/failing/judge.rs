//! What must hold of the logs and of what the handler was given, once all is whole again and at rest.

use std::ops::ControlFlow;

use towline::{Lsn, ShardId, offline};

use super::nodes::{Kept, NAMES, Place};
use super::records::{Append, Became, owner};

/// A log: where it begins, its records by number with the end of their batch, and its end.
struct Log {
    oldest: Lsn,
    records: Vec<(usize, Lsn)>,
    end: (Lsn, towline::wire::Chain),
}

fn read(place: &Place, node: usize) -> Result<Log, String> {
    let (mut records, mut phantom) = (Vec::new(), None);
    let report = offline::read_log(place.folder(node), ShardId(0), None, |batch| {
        for record in batch.records() {
            match owner(place.seed, record) {
                Some(id) => records.push((id, batch.header().end_lsn())),
                None => phantom = Some(batch.header().lsn()),
            }
        }
        ControlFlow::Continue(())
    });
    let name = NAMES[node];
    let report = report.map_err(|e| format!("the log of {name} cannot be read: {e}"))?;
    if let Some(damage) = report.damage {
        return Err(format!("the log of {name} is damaged: {damage:?}"));
    }
    if let Some(at) = phantom {
        return Err(format!("the log of {name} holds what nobody appended, at {at}"));
    }
    Ok(Log { oldest: report.oldest, records, end: (report.end, report.chain) })
}

/// Everything acknowledged is in both logs, where its client was told, or was there; and was given to the handler.
pub(super) fn judge(place: &Place, appends: &[Append], kept: &Kept) -> Result<(), String> {
    if let Some(wrong) = &kept.wrong {
        return Err(wrong.clone());
    }
    let logs = [read(place, 0)?, read(place, 1)?];
    if logs[0].end != logs[1].end {
        return Err(format!("the logs end differently: {:?} and {:?}", logs[0].end, logs[1].end));
    }
    for (log, name) in logs.iter().zip(NAMES) {
        let ids: Vec<usize> = log.records.iter().map(|r| r.0).collect();
        in_order(&ids, appends).map_err(|e| format!("the log of {name}: {e}"))?;
        for (id, append) in appends.iter().enumerate() {
            if let Became::Committed(lsn) = append.became
                && lsn > log.oldest
                && !log.records.contains(&(id, lsn))
            {
                return Err(format!("append {id} was acknowledged at {lsn} and is not there in the log of {name}"));
            }
        }
    }
    in_order(&kept.ids, appends).map_err(|e| format!("the handler: {e}"))?;
    if let Some(id) = (0..appends.len())
        .find(|id| matches!(appends[*id].became, Became::Committed(_)) && kept.ids.binary_search(id).is_err())
    {
        return Err(format!("append {id} was acknowledged and not given to the handler"));
    }
    let left: Vec<usize> = logs[0].records.iter().map(|r| r.0).collect();
    if !kept.ids.ends_with(&left) {
        return Err("the handler was given other records than the log has".into());
    }
    Ok(())
}

/// Records are in the order of their appends and once, none of them was refused; and of one life of the primary
/// nothing is there behind something that is lost.
fn in_order(ids: &[usize], appends: &[Append]) -> Result<(), String> {
    for pair in ids.windows(2) {
        let [a, b] = [pair[0], pair[1]];
        if a >= b {
            return Err(format!("append {b} comes after append {a}"));
        }
        let lost = (a + 1..b).find(|n| appends[*n].life == appends[b].life && appends[*n].became != Became::Refused);
        if let Some(lost) = lost {
            return Err(format!("append {b} is there, and append {lost} before it is not"));
        }
    }
    match ids.iter().find(|id| appends.get(**id).is_none_or(|a| a.became == Became::Refused)) {
        Some(id) => Err(format!("append {id} is there, and was refused or not made")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_gaps_and_refused_appends_are_seen() {
        let append = |life, became| Append { life, local: false, after: false, became };
        let all = [
            append(0, Became::Unknown),
            append(0, Became::Refused),
            append(0, Became::Unknown),
            append(1, Became::Unknown),
        ];
        for good in [&[][..], &[0, 2, 3], &[0, 3], &[3], &[2, 3]] {
            in_order(good, &all).unwrap();
        }
        for bad in [&[0, 1][..], &[2, 0], &[0, 0], &[4]] {
            in_order(bad, &all).unwrap_err();
        }
        let one_life = [append(0, Became::Unknown), append(0, Became::Unknown), append(0, Became::Unknown)];
        in_order(&[0, 2], &one_life).unwrap_err();
    }
}
