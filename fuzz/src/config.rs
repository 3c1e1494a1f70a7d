//! A configuration file: settings, or an error in one line that names a place in the file.

use std::path::Path;

use crate::alloc::measured;

// The command's own code: it is no part of the library.
#[allow(dead_code)]
#[path = "../../engine/src/bin/towline/config_file.rs"]
mod config_file;

use config_file::{FileError, Role, Settings, parse};

/// Memory that the TOML parser may take for each byte: a dot in a key makes a table, of about a KiB.
/// The file is the operator's own, not a peer's; what counts is that it stays in proportion.
const BYTES_PER_BYTE: usize = 2048;
/// Memory for a file of no length.
const BYTES: usize = 16 << 10;

/// The input as a file's text.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (settings, peak, total) = measured(|| parse(Path::new("f.toml"), text));
    let most = BYTES + BYTES_PER_BYTE * text.len();
    // What is taken in all stands for the time: the parser takes memory for each thing it reads.
    assert!(peak <= most && total <= 4 * most, "{peak} bytes at a time and {total} in all for {}", text.len());
    match settings {
        Ok(settings) => sound(&settings),
        Err(error) => names_a_place(&error, text),
    }
}

fn sound(settings: &Settings) {
    let _ = (settings.out_of_place(Role::Primary), settings.out_of_place(Role::Replica));
    let nothing = || Settings::default();
    let said = format!("{settings:?}");
    assert_eq!(format!("{:?}", settings.clone().over(nothing())), said);
    assert_eq!(format!("{:?}", nothing().over(settings.clone())), said);
}

fn names_a_place(error: &FileError, text: &str) {
    let shown = error.to_string();
    assert!(!shown.contains('\n'), "{shown:?}");
    let FileError::Content { line, column, .. } = error else { panic!("nothing was read from a file: {shown}") };
    // One line behind the last, or one column behind a line's end, is where something is missing.
    let lines: Vec<&str> = text.split('\n').collect();
    assert!(*line >= 1 && *line <= lines.len(), "{shown:?}");
    assert!(*column >= 1 && *column <= lines[line - 1].chars().count() + 1, "{shown:?}");
}
