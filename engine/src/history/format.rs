//! A history as lines: one flat JSON object for each event, numbers and plain strings only. What is
//! not known is refused, so that a misspelt field cannot weaken a check.

use std::fmt;

use thiserror::Error;
use towline_wire::handshake::NodeName;
use towline_wire::message::AckLevel;
use towline_wire::{Lsn, Seq, ShardId, Term};

use super::event::{Append, Commit, Event, Outcome, Print, Status, VERSION};
use crate::protocol::policy::level_name;

/// The longest line, without its newline.
pub const LINE_BYTES_MAX: usize = 1024;
/// Most fields of an object.
const FIELDS_MAX: usize = 16;

/// Why a line is no event.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("at byte {at}: {reason}")]
pub struct LineError {
    /// Where in the line, counted from 1.
    pub at: usize,
    /// What is wrong there.
    pub reason: String,
}

#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    Number(u64),
    Text(&'a str),
}

struct Field<'a> {
    key: &'a str,
    value: Value<'a>,
    at: usize,
}

/// Reads an event from a line, without its newline.
///
/// # Errors
/// Where it stops to be one.
pub fn parse(line: &[u8]) -> Result<Event, LineError> {
    if line.len() > LINE_BYTES_MAX {
        return Err(error(
            LINE_BYTES_MAX,
            format!("the line has {} bytes, at most {LINE_BYTES_MAX} may be", line.len()),
        ));
    }
    let mut fields = Fields { all: Scanner { line, at: 0 }.object()? };
    let kind = fields.text("event")?;
    let event = match kind.0 {
        "begin" => {
            let (version, at) = fields.number("version")?;
            if version != VERSION {
                return Err(error(at, format!("the history has version {version}, this build reads {VERSION}")));
            }
            Event::Begin { nodes: fields.small("nodes")? }
        }
        "append" => Event::Append(Append {
            id: fields.number("id")?.0,
            client: fields.optional("client")?.map_or(Ok(0), narrow)?,
            shard: ShardId(fields.small("shard")?),
            print: Print { bytes: fields.small("bytes")?, hash: fields.hash()? },
            policy: match fields.take("policy") {
                None => None,
                Some(field) => {
                    let text = field.text()?;
                    Some(text.parse().map_err(|e| error(field.at, format!("{e}")))?)
                }
            },
            at_us: fields.number("at_us")?.0,
        }),
        "outcome" => Event::Outcome(Outcome {
            id: fields.number("id")?.0,
            records: fields.optional("records")?.map_or(1, |n| n.0),
            status: fields.status()?,
            at_us: fields.number("at_us")?.0,
        }),
        "lost" => {
            let (node, at) = fields.text("node")?;
            let name = NodeName::new(node);
            let node = name.ok_or_else(|| error(at, format!("{node:?} is no name: 1 to 63 of a-z, 0-9, _ and -")))?;
            Event::Lost { node, at_us: fields.number("at_us")?.0 }
        }
        other => return Err(error(kind.1, format!("no event is called {other:?}"))),
    };
    match fields.all.first() {
        Some(field) => Err(error(field.at, format!("the event {:?} has no field {:?}", kind.0, field.key))),
        None => Ok(event),
    }
}

/// As a line, without its newline.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begin { nodes } => write!(f, "{{\"event\":\"begin\",\"version\":{VERSION},\"nodes\":{nodes}}}"),
            Self::Append(a) => {
                let Append { id, client, shard, print: Print { bytes, hash }, policy, at_us } = a;
                write!(
                    f,
                    "{{\"event\":\"append\",\"id\":{id},\"client\":{client},\"shard\":{shard},\"bytes\":{bytes},\
                     \"hash\":\"{hash:016x}\""
                )?;
                if let Some(policy) = policy {
                    write!(f, ",\"policy\":\"{policy}\"")?;
                }
                write!(f, ",\"at_us\":{at_us}}}")
            }
            Self::Outcome(o) => {
                let Outcome { id, records, status, at_us } = o;
                write!(f, "{{\"event\":\"outcome\",\"id\":{id},\"records\":{records},\"status\":\"{}\"", name(status))?;
                if let Status::Committed(Commit { term, lsn, first_seq, level, wanted, acks }) = status {
                    write!(f, ",\"term\":{term},\"lsn\":{lsn}")?;
                    if let Some(seq) = first_seq {
                        write!(f, ",\"seq\":{seq}")?;
                    }
                    write!(f, ",\"level\":\"{}\",\"wanted\":{wanted},\"acks\":{acks}", level_name(*level))?;
                }
                write!(f, ",\"at_us\":{at_us}}}")
            }
            Self::Lost { node, at_us } => write!(f, "{{\"event\":\"lost\",\"node\":\"{node}\",\"at_us\":{at_us}}}"),
        }
    }
}

const fn name(status: &Status) -> &'static str {
    match status {
        Status::Committed(_) => "committed",
        Status::TimedOut => "timed_out",
        Status::Unknown => "unknown",
        Status::Refused => "refused",
    }
}

/// `at` counts from 0.
fn error(at: usize, reason: impl Into<String>) -> LineError {
    LineError { at: at + 1, reason: reason.into() }
}

/// A number that has to fit.
fn narrow<T: TryFrom<u64>>((number, at): (u64, usize)) -> Result<T, LineError> {
    T::try_from(number).map_err(|_| error(at, format!("{number} is too large here")))
}

impl<'a> Field<'a> {
    fn text(&self) -> Result<&'a str, LineError> {
        match self.value {
            Value::Text(text) => Ok(text),
            Value::Number(_) => Err(error(self.at, format!("{:?} is a string", self.key))),
        }
    }

    fn number(&self) -> Result<u64, LineError> {
        match self.value {
            Value::Number(number) => Ok(number),
            Value::Text(_) => Err(error(self.at, format!("{:?} is a number", self.key))),
        }
    }
}

/// The fields that were not asked for yet.
struct Fields<'a> {
    all: Vec<Field<'a>>,
}

impl<'a> Fields<'a> {
    fn take(&mut self, key: &str) -> Option<Field<'a>> {
        let at = self.all.iter().position(|f| f.key == key)?;
        Some(self.all.remove(at))
    }

    fn needed(&mut self, key: &str) -> Result<Field<'a>, LineError> {
        self.take(key).ok_or_else(|| error(0, format!("there is no field {key:?}")))
    }

    fn text(&mut self, key: &str) -> Result<(&'a str, usize), LineError> {
        let field = self.needed(key)?;
        Ok((field.text()?, field.at))
    }

    fn number(&mut self, key: &str) -> Result<(u64, usize), LineError> {
        let field = self.needed(key)?;
        Ok((field.number()?, field.at))
    }

    fn optional(&mut self, key: &str) -> Result<Option<(u64, usize)>, LineError> {
        self.take(key).map(|field| Ok((field.number()?, field.at))).transpose()
    }

    fn small<T: TryFrom<u64>>(&mut self, key: &str) -> Result<T, LineError> {
        narrow(self.number(key)?)
    }

    fn hash(&mut self) -> Result<u64, LineError> {
        let (text, at) = self.text("hash")?;
        let digits = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match u64::from_str_radix(text, 16) {
            Ok(hash) if digits => Ok(hash),
            _ => Err(error(at, "a hash is 16 hexadecimal digits, in lower case")),
        }
    }

    fn status(&mut self) -> Result<Status, LineError> {
        let (status, at) = self.text("status")?;
        Ok(match status {
            "committed" => Status::Committed(Commit {
                term: Term(self.number("term")?.0),
                lsn: Lsn(self.number("lsn")?.0),
                first_seq: self.optional("seq")?.map(|n| Seq(n.0)),
                level: {
                    let (text, at) = self.text("level")?;
                    let levels = [AckLevel::Received, AckLevel::Flushed, AckLevel::Applied];
                    let found = levels.into_iter().find(|l| level_name(*l) == text);
                    found.ok_or_else(|| error(at, "a level is received, flushed or applied"))?
                },
                wanted: self.small("wanted")?,
                acks: self.small("acks")?,
            }),
            "timed_out" => Status::TimedOut,
            "unknown" => Status::Unknown,
            "refused" => Status::Refused,
            _ => return Err(error(at, "a status is committed, timed_out, unknown or refused")),
        })
    }
}

struct Scanner<'a> {
    line: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    /// All fields of the line's only object.
    fn object(&mut self) -> Result<Vec<Field<'a>>, LineError> {
        let mut fields: Vec<Field<'a>> = Vec::with_capacity(FIELDS_MAX);
        self.expect(b'{')?;
        loop {
            self.space();
            let at = self.at;
            let key = self.text()?;
            self.expect(b':')?;
            self.space();
            let value_at = self.at;
            let value = match self.line.get(self.at) {
                Some(b'"') => Value::Text(self.text()?),
                Some(b'0'..=b'9') => Value::Number(self.number()?),
                _ => return Err(error(value_at, "a value is a whole number or a string")),
            };
            if fields.iter().any(|f| f.key == key) {
                return Err(error(at, format!("the field {key:?} is there twice")));
            }
            if fields.len() == FIELDS_MAX {
                return Err(error(at, format!("there are more than {FIELDS_MAX} fields")));
            }
            fields.push(Field { key, value, at: value_at });
            self.space();
            match self.line.get(self.at) {
                Some(b',') => self.at += 1,
                _ => break,
            }
        }
        self.expect(b'}')?;
        self.space();
        if self.at < self.line.len() {
            return Err(error(self.at, "something follows the object"));
        }
        Ok(fields)
    }

    fn space(&mut self) {
        while matches!(self.line.get(self.at), Some(b' ' | b'\t' | b'\r')) {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), LineError> {
        self.space();
        if self.line.get(self.at) == Some(&byte) {
            self.at += 1;
            return Ok(());
        }
        Err(error(self.at, format!("{:?} is expected", char::from(byte))))
    }

    /// Escapes have no use here: names, words and hexadecimal digits need none.
    fn text(&mut self) -> Result<&'a str, LineError> {
        self.expect(b'"')?;
        let start = self.at;
        loop {
            match self.line.get(self.at) {
                Some(b'"') => break,
                Some(b'\\') => return Err(error(self.at, "strings have no escapes here")),
                Some(b' '..=b'~') => self.at += 1,
                Some(_) => return Err(error(self.at, "strings are plain ASCII here")),
                None => return Err(error(self.at, "the string does not end")),
            }
        }
        let text =
            str::from_utf8(&self.line[start..self.at]).map_err(|_| error(start, "strings are plain ASCII here"))?;
        self.at += 1;
        Ok(text)
    }

    fn number(&mut self) -> Result<u64, LineError> {
        let start = self.at;
        while matches!(self.line.get(self.at), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        let digits = &self.line[start..self.at];
        if digits.len() > 1 && digits[0] == b'0' {
            return Err(error(start, "a number has no leading zeros"));
        }
        let number = str::from_utf8(digits).ok().and_then(|d| d.parse().ok());
        number.ok_or_else(|| error(start, format!("a number is at most {}", u64::MAX)))
    }
}
