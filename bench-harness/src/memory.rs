//! What the kernel says of this process.

/// A number of `/proc/self/status`, as it stands there.
///
/// # Errors
/// It is not there.
pub fn status(name: &str) -> Result<u64, String> {
    let all = std::fs::read_to_string("/proc/self/status").map_err(|e| format!("/proc/self/status: {e}"))?;
    let line = all.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|l| l.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| format!("/proc/self/status says no {name}"))
}

/// Bytes of memory that this process has resident.
///
/// # Errors
/// The kernel does not say.
pub fn rss_bytes() -> Result<u64, String> {
    Ok(status("VmRSS")? * 1024)
}
