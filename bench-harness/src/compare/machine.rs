//! What kind of machine this is, without its name, and what day.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::model::Machine;

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The value behind the first line that begins with `key`.
fn value(text: &str, key: &str, separator: char) -> String {
    let line = text.lines().find(|l| l.starts_with(key));
    line.and_then(|l| l.split_once(separator)).map_or("unknown", |(_, v)| v).trim().trim_matches('"').to_string()
}

/// This machine; `dir` is where the nodes' folders are.
pub(crate) fn machine(dir: &Path) -> Machine {
    let cpuinfo = read("/proc/cpuinfo");
    let kib = value(&read("/proc/meminfo"), "MemTotal", ':').split(' ').next().and_then(|n| n.parse::<u64>().ok());
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    Machine {
        processor: value(&cpuinfo, "model name", ':'),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        memory_gib: (kib.unwrap_or(0) + (1 << 19)) >> 20,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_string(),
        system: value(&read("/etc/os-release"), "PRETTY_NAME", '='),
        virtualised: cpuinfo.lines().any(|l| l.starts_with("flags") && l.contains(" hypervisor")),
        file_system: file_system(&read("/proc/self/mountinfo"), &dir),
    }
}

/// The file system that holds a folder: its kind, what of its options bears on speed, its device's
/// kind (proc(5), mountinfo).
fn file_system(mountinfo: &str, dir: &Path) -> String {
    let mounts = mountinfo.lines().filter_map(|l| {
        let (left, right) = l.split_once(" - ")?;
        let point = left.split(' ').nth(4)?;
        let options = left.split(' ').nth(5)?;
        let mut right = right.split(' ');
        Some((point, options, right.next()?, right.next()?, right.next()?))
    });
    let best = mounts.filter(|m| dir.starts_with(m.0)).max_by_key(|m| m.0.len());
    let Some((_, options, kind, device, more)) = best else { return "unknown".into() };
    let telling = |o: &&str| ["discard", "nobarrier", "sync", "dirsync"].contains(o) || o.starts_with("data=");
    let mut words = vec![kind.to_string()];
    words.extend(options.split(',').chain(more.split(',')).filter(telling).map(str::to_string));
    let name = device.rsplit('/').next().unwrap_or("");
    let kinds = [
        ("vd", "virtio disk"),
        ("nvme", "NVMe"),
        ("sd", "SCSI or SATA disk"),
        ("xvd", "Xen disk"),
        ("dm-", "device mapper"),
    ];
    words.extend(kinds.iter().find(|(start, _)| name.starts_with(start)).map(|(_, text)| (*text).to_string()));
    words.dedup();
    words.join(", ")
}

/// Now, as `2026-11-21 08:00 UTC`.
pub(crate) fn date() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    date_of(seconds)
}

fn date_of(seconds: u64) -> String {
    // Days to a date: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", rest / 3600, rest / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_leap_years_and_ends_of_years() {
        for (seconds, date) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59 UTC"),
            (1_795_248_000, "2026-11-21 08:00 UTC"),
        ] {
            assert_eq!(date_of(seconds), date);
        }
    }

    #[test]
    fn the_file_system_is_that_of_the_longest_mount_point_and_names_no_device() {
        let info = "1 0 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n2 1 0:5 / /data rw - xfs /dev/nvme0n1 rw\n";
        assert_eq!(file_system(info, Path::new("/tmp/x")), "ext4, discard, virtio disk");
        assert_eq!(file_system(info, Path::new("/data/x")), "xfs, NVMe");
        assert_eq!(file_system(info, Path::new("/database")), "ext4, discard, virtio disk");
    }

    #[test]
    fn a_value_stands_behind_its_key() {
        assert_eq!(value("a\t: 1\nmodel name\t: Some CPU\n", "model name", ':'), "Some CPU");
        assert_eq!(value("PRETTY_NAME=\"Some system\"\n", "PRETTY_NAME", '='), "Some system");
        assert_eq!(value("", "model name", ':'), "unknown");
    }
}
