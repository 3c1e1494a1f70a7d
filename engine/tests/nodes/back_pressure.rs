//! Everything is bounded: what cannot be taken now is refused or waits, memory stays within its
//! limits, and records of every size up to the limit go through whatever the sizes around them.

use std::time::{Duration, Instant};

use crate::cluster::{self, ONE, Place, commit, of, of_replica, on_disk, until, until_same};
use towline::{AppendError, AppendOptions, Outcome, Primary, Replica};

#[test]
fn try_append_says_so_when_the_device_is_behind_and_memory_stays_bounded() {
    let place = Place::new();
    let mut config = place.primary("p", &[]);
    (config.node.write_depth, config.node.segment_bytes) = (1, 1 << 20);
    let in_flight = config.node.in_flight_bytes_max();
    config.node.record_bytes_max = 64 << 10;
    config.node.live_window_bytes = 256 << 10;
    let primary = Primary::open(config).unwrap();
    let handle = primary.handle();
    let record = vec![7; 32 << 10];
    let mut tickets = Vec::new();
    let mut refused = 0;
    // A ring holds 4 MiB: a loop without a pause is faster than a device for a while.
    while refused < 50 {
        match handle.try_append(ONE, &record, AppendOptions::default()) {
            Ok(ticket) => tickets.push(ticket),
            Err(AppendError::WouldBlock) => {
                refused += 1;
                let s = of(&primary);
                assert!(s.memory_bytes <= (256 << 10) + in_flight, "{} bytes", s.memory_bytes);
            }
            Err(e) => panic!("{e}"),
        }
        assert!(tickets.len() < 100_000, "nothing was ever refused");
    }
    let accepted = tickets.len() as u64;
    assert!(tickets.into_iter().all(|t| matches!(t.wait(), Ok(Outcome::Committed { .. }))));
    assert_eq!(of(&primary).tail_seq.0, accepted, "what was refused was not written");
}

#[test]
fn an_append_that_waits_behind_another_keeps_its_own_deadline() {
    const LARGE: usize = 24 << 20;
    let place = Place::new();
    let mut config = place.primary("p", &[]);
    config.node.record_bytes_max = LARGE;
    let primary = Primary::open(config).unwrap();
    let handle = primary.handle();
    let within = |ms| AppendOptions { deadline: Some(Duration::from_millis(ms)), ..AppendOptions::default() };
    let mut accepted = 0;
    // A disk may be so fast that nobody has to wait: then it is tried again.
    let shown = (0..5).any(|_| {
        let before = of(&primary).appended_lsn;
        // It needs hundreds of segments, which are filled with zeros one after another. Until then
        // its batch stays open, and nothing of two blocks fits behind it there.
        let large = handle.append(ONE, &vec![1; LARGE]).unwrap();
        let patient = handle.append(ONE, &[2; 8000]).unwrap();
        let began = Instant::now();
        let hurried: Vec<_> = [30, 10, 20].map(|ms| handle.append_with(ONE, &[3; 8000], within(ms)).unwrap()).into();
        let told: Vec<_> = hurried.into_iter().map(towline::Ticket::wait).collect();
        let took = began.elapsed();
        let all_refused = told.iter().all(|t| *t == Err(AppendError::WouldBlock));
        let in_time = all_refused && of(&primary).appended_lsn == before;
        assert!(in_time || took < Duration::from_millis(100), "they waited {took:?} for those in front: {told:?}");
        // Those who have time are served, and what was refused is not written.
        assert!([large, patient].into_iter().all(|t| t.wait().unwrap().committed().is_some()));
        accepted += 2 + told.iter().filter(|t| t.is_ok()).count() as u64;
        in_time
    });
    assert!(shown, "room was always there at once");
    commit(&handle, b"last");
    assert_eq!(of(&primary).tail_seq.0, accepted + 1);
}

#[test]
fn a_replica_that_is_away_costs_no_memory() {
    let place = Place::new();
    let mut config = place.primary("p", &["r1", "r2"]);
    config.commit = "ack_n=1".parse().unwrap();
    config.node.live_window_bytes = 64 << 10;
    let in_flight = config.node.in_flight_bytes_max();
    let window = config.node.live_window_bytes as u64;
    config.node.record_bytes_max = 64 << 10;
    let primary = Primary::open(config).unwrap();
    let r1 = Replica::open(place.replica("r1")).unwrap();
    let handle = primary.handle();
    for n in 0..40u8 {
        let tickets: Vec<_> = (0..8).map(|_| handle.append(ONE, &vec![n; 8 << 10]).unwrap()).collect();
        assert!(tickets.into_iter().all(|t| t.wait().unwrap().committed().is_some()));
        let held = of(&primary).memory_bytes;
        assert!(held <= window + in_flight, "{held} bytes");
    }
    until_same(&primary, &r1);
}

#[test]
fn a_policy_that_no_replica_fulfils_bounds_what_waits() {
    let place = Place::new();
    let mut config = place.primary("p", &["r1"]);
    config.deadline = Duration::from_millis(300);
    let primary = Primary::open(config).unwrap();
    let handle = primary.handle();
    // More than tickets may be open: the rest is refused until some have timed out.
    let mut open = Vec::new();
    let began = Instant::now();
    let refused = loop {
        match handle.try_append(ONE, b"x", AppendOptions::default()) {
            Ok(ticket) => open.push(ticket),
            Err(AppendError::TooManyTickets) => break open.len() == towline::limits::TICKETS_MAX,
            Err(AppendError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
            Err(e) => panic!("{e}"),
        }
        assert!(began.elapsed() < cluster::LIMIT && open.len() <= towline::limits::TICKETS_MAX);
    };
    assert!(refused);
    // Those that found no room in time, on a slow machine, are refused.
    let timed_out = |o| matches!(o, Ok(Outcome::TimedOut { acks: 0, wanted: 1, .. }) | Err(AppendError::WouldBlock));
    assert!(open.into_iter().all(|t| timed_out(t.wait())));
    assert!(timed_out(handle.append(ONE, b"y").unwrap().wait()));
}

#[test]
fn records_of_every_size_go_through_and_come_back() {
    let (batch, segment) = (16 << 10, 64 << 10);
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &["r1"])).unwrap();
    let replica = Replica::open(place.replica("r1")).unwrap();
    let handle = primary.handle();
    let mut sizes = vec![0, 1, 7, 8, 9];
    // A batch's buffer holds its own header and the record's beside the record.
    for edge in [4096, batch, segment, 3 * segment] {
        sizes.extend([
            edge - 160,
            edge - 144,
            edge - 137,
            edge - 136,
            edge - 135,
            edge - 128,
            edge - 1,
            edge,
            edge + 1,
        ]);
    }
    let records: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(n, size)| vec![n as u8; *size]).collect();
    // Each by itself, then all together.
    for record in &records {
        commit(&handle, record);
    }
    cluster::commit_all(&handle, &records);
    until_same(&primary, &replica);
    primary.stop();
    replica.stop();
    let want: Vec<_> = records.iter().chain(&records).cloned().collect();
    assert!(on_disk(&place.path("p")) == want);
    assert!(on_disk(&place.path("r1")) == want);
}

#[test]
fn a_record_much_larger_than_a_segment_reaches_a_replica() {
    let place = Place::new();
    let primary = Primary::open(place.primary("p", &["r1"])).unwrap();
    let replica = Replica::open(place.replica("r1")).unwrap();
    // 64 KiB segments: it spans seventeen of them.
    let record: Vec<u8> = (0..1 << 20).map(|n: u32| (n / 7) as u8).collect();
    commit(&primary.handle(), &record);
    until_same(&primary, &replica);
    primary.stop();
    replica.stop();
    assert!(on_disk(&place.path("r1")) == [record]);
}

#[test]
fn the_largest_record_goes_through_and_one_byte_more_is_refused() {
    let place = Place::new();
    let mut config = place.primary("p", &["r1"]);
    config.node.segment_bytes = 64 << 20;
    config.node.segments_ahead = 1;
    let primary = Primary::open(config).unwrap();
    let mut config = place.replica("r1");
    config.node.segments_ahead = 1;
    let replica = Replica::open(config).unwrap();
    let handle = primary.handle();
    let mut record = vec![0x5a; towline::wire::RECORD_BYTES_MAX + 1];
    let max = towline::wire::RECORD_BYTES_MAX;
    let refused = handle.append(ONE, &record).err();
    assert_eq!(refused, Some(AppendError::TooLarge { bytes: max + 1, max }));
    record.pop();
    // It does not fit behind another one in its segment.
    commit(&handle, b"small");
    commit(&handle, &record);
    commit(&handle, b"after");
    until_same(&primary, &replica);
    assert_eq!(of_replica(&replica).tail_seq.0, 3);
    primary.stop();
    replica.stop();
    assert!(on_disk(&place.path("r1")) == [b"small".to_vec(), record, b"after".to_vec()]);
}

#[test]
fn the_configured_limit_of_a_record_holds() {
    let place = Place::new();
    let mut config = place.primary("p", &[]);
    config.node.record_bytes_max = 1000;
    let primary = Primary::open(config).unwrap();
    let handle = primary.handle();
    commit(&handle, &[1; 1000]);
    let refused = handle.append(ONE, &[1; 1001]).err();
    assert_eq!(refused, Some(AppendError::TooLarge { bytes: 1001, max: 1000 }));
    assert_eq!(of(&primary).tail_seq.0, 1);
}

#[test]
fn a_batch_lingers_for_more_records_but_no_longer_than_configured() {
    let place = Place::new();
    let mut config = place.primary("p", &[]);
    config.node.max_linger = Duration::from_millis(200);
    let primary = Primary::open(config).unwrap();
    let handle = primary.handle();
    let began = Instant::now();
    let tickets: Vec<_> = (0..10u8).map(|n| handle.append(ONE, &[n]).unwrap()).collect();
    assert!(tickets.into_iter().all(|t| t.wait().unwrap().committed().is_some()));
    assert!(began.elapsed() >= Duration::from_millis(190), "it went out after {:?}", began.elapsed());
    let batches = of(&primary).telemetry.counters.batches;
    assert!(batches <= 2, "{batches} batches for ten records");
    // A full batch waits for nothing.
    let began = Instant::now();
    let tickets: Vec<_> = (0..8u8).map(|n| handle.append(ONE, &[n; 4000]).unwrap()).collect();
    drop(tickets);
    until("a full batch is closed", || of(&primary).telemetry.counters.batches > batches);
    assert!(began.elapsed() < Duration::from_millis(190));
}
