//! Files of a backup: copied and summed up in pieces, made durable, and no others beside them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use towline_wire::handshake::NodeName;

use super::manifest;

/// In a folder with a backup from a running primary that is not finished: the name of its slot.
pub(super) const UNFINISHED: &str = "unfinished";
/// Bytes read at once.
const PIECE: usize = 1 << 20;

/// Opens a regular file of exactly `bytes`.
pub(super) fn open(path: &Path, bytes: u64) -> io::Result<fs::File> {
    let found = fs::symlink_metadata(path)?;
    if !found.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    if found.len() != bytes {
        return Err(io::Error::other(format!("it has {} bytes, {bytes} are expected", found.len())));
    }
    fs::File::open(path)
}

/// Reads exactly `bytes` of a regular file in pieces, and gives its CRC. Refuses one of another size.
pub fn read(path: &Path, bytes: u64, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<u32> {
    let mut file = open(path, bytes)?;
    let (mut crc, mut left) = (0, bytes);
    let mut piece = vec![0; PIECE.min(bytes as usize)];
    while left > 0 {
        let part = &mut piece[..(left as usize).min(PIECE)];
        file.read_exact(part)?;
        crc = crc32c::crc32c_append(crc, part);
        each(part)?;
        left -= part.len() as u64;
    }
    Ok(crc)
}

/// Copies a file of exactly `bytes` to a new one, durably, and gives its CRC.
pub fn copy(from: &Path, to: &Path, bytes: u64, mut each: impl FnMut(u64)) -> io::Result<u32> {
    let mut target = fs::File::create_new(to)?;
    let crc = read(from, bytes, |part| {
        each(part.len() as u64);
        target.write_all(part)
    })?;
    target.sync_all()?;
    Ok(crc)
}

/// Makes the folders of a file, durably.
pub fn make_folder_of(path: &Path, root: &Path) -> io::Result<()> {
    let folder = path.parent().unwrap_or(root);
    if folder.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    for made in folder.ancestors().take_while(|a| a.starts_with(root)) {
        fs::File::open(made)?.sync_all()?;
    }
    Ok(())
}

/// Flushes the folders of all these files.
pub fn sync_folders<'a>(root: &Path, files: impl Iterator<Item = &'a str>) -> io::Result<()> {
    let folders: BTreeSet<PathBuf> = files
        .flat_map(|f| Path::new(f).ancestors().skip(1).map(|a| root.join(a)).collect::<Vec<_>>())
        .chain([root.to_path_buf()])
        .collect();
    folders.iter().try_for_each(|f| fs::File::open(f)?.sync_all())
}

/// Every file below a folder, by its path from there. Nothing but folders and files may be there.
pub fn list(root: &Path) -> io::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut folders = vec![(root.to_path_buf(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name().to_str().map(str::to_owned);
            let name = name.ok_or_else(|| io::Error::other("a name is no text"))?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                // A node's folder is three deep; nobody is led around in circles.
                if prefix.matches('/').count() > 4 {
                    return Err(io::Error::other(format!("{prefix}{name} is too deep")));
                }
                folders.push((entry.path(), format!("{prefix}{name}/")));
            } else if kind.is_file() {
                found.insert(format!("{prefix}{name}"));
            } else {
                return Err(io::Error::other(format!("{prefix}{name} is neither a file nor a folder")));
            }
        }
    }
    Ok(found)
}

/// Makes a folder, or takes an empty one.
pub fn take_empty(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        other => return other,
    }
    match fs::read_dir(path)?.next() {
        None => Ok(()),
        Some(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is not empty")),
    }
}

/// The name of the slot of a backup in this folder that was not finished.
pub fn take_unfinished(path: &Path) -> io::Result<NodeName> {
    if path.join(manifest::FILE).exists() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the backup in it is whole"));
    }
    let none = |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("no backup to go on with: {why}"));
    let name = fs::read_to_string(path.join(UNFINISHED)).map_err(|e| none(&format!("{UNFINISHED}: {e}")))?;
    NodeName::new(name.trim()).ok_or_else(|| none(&format!("{UNFINISHED} names no slot")))
}

/// An empty folder is one of a backup that is not finished.
pub fn begin_unfinished(path: &Path, slot: NodeName) -> io::Result<()> {
    let mut file = fs::File::create_new(path.join(UNFINISHED))?;
    file.write_all(format!("{slot}\n").as_bytes())?;
    file.sync_all()
}

/// The manifest is there.
pub fn finished(path: &Path) -> io::Result<()> {
    match fs::remove_file(path.join(UNFINISHED)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => fs::File::open(path)?.sync_all(),
    }
}
