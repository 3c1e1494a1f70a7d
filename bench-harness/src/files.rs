//! What lies in a folder.

use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};

/// All that is no folder in a folder and below. Links are not followed; what goes meanwhile is left out.
pub(crate) fn files_below(folder: &Path) -> io::Result<Vec<(PathBuf, Metadata)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let found =
            fs::symlink_metadata(&path).and_then(|m| if m.is_dir() { files_below(&path) } else { Ok(vec![(path, m)]) });
        match found {
            Ok(found) => files.extend(found),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(files)
}
