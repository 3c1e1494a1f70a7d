//! `towline tail`: a shard's committed records on stdout.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use thiserror::Error;
use towline::client::{Batch, ConnectOptions, Tail, TailRequest, TailStart};

use crate::exit;

/// Memory for output that is not written yet.
const OUTPUT_BYTES: usize = 256 << 10;

/// Write a shard's committed records to stdout, in order.
///
/// Every batch is checked on arrival: its CRCs, and that it follows from the one before it without
/// a gap. Only what is committed is written. Works on a primary and on a replica.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status:
  0  the end was reached, or stdout was closed
  1  stdout is at fault, or what the node sent does not hold together
  2  the command line cannot be understood
  4  refused by the node; also: the start is older than what is kept, or is no batch boundary
  5  the connection could not be opened or was lost; says where to resume

Examples:
  towline tail --from 127.0.0.1:4790 --shard 0                          what is there now, as lines
  towline tail --from 127.0.0.1:4790 --shard 0 --start end --follow     what comes from now on
  towline tail --from db1:4790 --shard 3 --framed | towline append --to db2:4790 --shard 3 --framed")]
pub(crate) struct Args {
    /// The node's address, HOST:PORT
    #[arg(long, value_name = "ADDR")]
    from: String,

    /// The shard to read, counted from 0
    #[arg(long, value_name = "K")]
    shard: u32,

    /// Where to begin: an LSN at which a batch begins, `oldest` or `end`
    #[arg(long, value_name = "LSN|oldest|end", default_value = "oldest", value_parser = parse_start)]
    start: TailStart,

    /// Stop at the position that was the end when this began (the default)
    #[arg(long, group = "extent")]
    until_end: bool,

    /// Go on with what is committed from then on, until interrupted
    #[arg(long, group = "extent")]
    follow: bool,

    /// A newline behind each record (the default); a record with newlines in it looks like several
    #[arg(long, group = "framing")]
    lines: bool,

    /// A little-endian u32 length in front of each record: loses nothing
    #[arg(long, group = "framing")]
    framed: bool,

    /// The records back to back, with nothing between them
    #[arg(long, group = "framing")]
    raw: bool,
}

fn parse_start(text: &str) -> Result<TailStart, String> {
    match text {
        "oldest" => Ok(TailStart::Oldest),
        "end" => Ok(TailStart::End),
        _ if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) => {
            Err(format!("`{text}` is not an LSN; give a decimal number, `oldest` or `end`"))
        }
        _ => match text.parse().map(|lsn| TailStart::At(towline_wire::Lsn(lsn))) {
            Ok(TailStart::At(lsn)) if !lsn.is_block_aligned() => {
                let block = towline_wire::BLOCK;
                Err(format!("no batch begins at LSN {text}: batches begin at multiples of {block}"))
            }
            Ok(start) => Ok(start),
            Err(_) => Err(format!("`{text}` is more than an LSN holds")),
        },
    }
}

/// Why the command ends with exit status 1.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// Stdout cannot be had or written.
    #[error("cannot write to stdout: {0}")]
    Output(#[from] io::Error),
}

#[derive(Clone, Copy, Debug)]
enum Form {
    Lines,
    Framed,
    Raw,
}

fn write_batch(out: &mut impl Write, batch: &Batch, form: Form) -> io::Result<()> {
    for record in batch.records() {
        if matches!(form, Form::Framed) {
            // A record is never longer than a u32 counts: the batch was checked.
            out.write_all(&(record.len() as u32).to_le_bytes())?;
        }
        out.write_all(record)?;
        if matches!(form, Form::Lines) {
            out.write_all(b"\n")?;
        }
    }
    Ok(())
}

/// Writes a shard's log to stdout.
pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let form = match (args.framed, args.raw) {
        (true, _) => Form::Framed,
        (_, true) => Form::Raw,
        _ => Form::Lines,
    };
    // `lines` and `until_end` are what holds without a flag; clap admits one of each group.
    debug_assert!(!args.lines || matches!(form, Form::Lines));
    debug_assert!(!args.until_end || !args.follow);
    let request = TailRequest { start: args.start, flushed: false, until_end: !args.follow };
    let mut tail = match Tail::open(&args.from, args.shard, request, &ConnectOptions::default()) {
        Ok(tail) => tail,
        Err(error) => return Ok(exit::give_up(&error)),
    };
    // A handle of our own: the standard library's would look for newlines in everything.
    let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut out = BufWriter::with_capacity(OUTPUT_BYTES, stdout);
    match copy(&mut tail, &mut out, form, args.follow) {
        Ok(code) => Ok(code),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            // What is still buffered has no reader; writing it again when dropped would only fail.
            drop(out.into_parts());
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => Err(error.into()),
    }
}

fn copy(tail: &mut Tail, out: &mut impl Write, form: Form, follow: bool) -> io::Result<ExitCode> {
    loop {
        match tail.next_batch() {
            Ok(Some(batch)) => {
                write_batch(out, &batch, form)?;
                if follow {
                    // Somebody may be looking on.
                    out.flush()?;
                }
            }
            Ok(None) => {
                out.flush()?;
                return Ok(ExitCode::SUCCESS);
            }
            Err(error) => {
                out.flush()?;
                let code = exit::give_up(&error);
                if let Some(lsn) = tail.position() {
                    exit::complain(&format!("everything before LSN {lsn} was written; resume with --start {lsn}"));
                }
                return Ok(code);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_a_batch_boundary_or_a_word() {
        assert_eq!(parse_start("oldest"), Ok(TailStart::Oldest));
        assert_eq!(parse_start("end"), Ok(TailStart::End));
        assert_eq!(parse_start("8192"), Ok(TailStart::At(towline_wire::Lsn(8192))));
        for text in ["", "END", "-1", "+4096", "0x1000", "4096 ", "1", "4097", "18446744073709551616"] {
            let error = parse_start(text).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }
}
