//! Sizes and durations as people write them: `64MiB`, `200ms`.
//!
//! Strict on purpose: an integer and one unit, nothing else. `64MB` is refused instead of guessed,
//! because 64,000,000 and 67,108,864 bytes are both plausible.

use std::time::Duration;

use thiserror::Error;

/// Why a text is not a size or a duration. Each names the text.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UnitError {
    /// It does not begin with a digit, or has signs, points or spaces in it.
    #[error("`{text}` is not a whole number with a unit; write it like {example}")]
    Number {
        /// What was given.
        text: String,
        /// What it could have been.
        example: &'static str,
    },
    /// The number's unit is not one of those accepted.
    #[error("`{text}`: unit `{unit}` is not known here; use {accepted}")]
    Unit {
        /// What was given.
        text: String,
        /// The part behind the number.
        unit: String,
        /// What is accepted.
        accepted: &'static str,
    },
    /// There is a number, and no unit where one is needed.
    #[error("`{text}` lacks a unit; use {accepted}")]
    NoUnit {
        /// What was given.
        text: String,
        /// What is accepted.
        accepted: &'static str,
    },
    /// It is more than 64 bits hold.
    #[error("`{text}` is too large")]
    TooLarge {
        /// What was given.
        text: String,
    },
}

const SIZE_UNITS: &[(&str, u64)] =
    &[("", 1), ("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];
const SIZE_ACCEPTED: &str = "B, KiB, MiB, GiB or TiB (powers of 1024), or no unit for bytes";
const SIZE_EXAMPLE: &str = "4096, 64KiB or 1GiB";

const DURATION_UNITS: &[(&str, u64)] =
    &[("us", 1), ("ms", 1_000), ("s", 1_000_000), ("m", 60_000_000), ("h", 3_600_000_000)];
const DURATION_ACCEPTED: &str = "us, ms, s, m or h";
const DURATION_EXAMPLE: &str = "200ms, 5s or 1m";

/// The number in front and the unit behind it; the number is `None` if 64 bits do not hold it.
fn split<'a>(text: &'a str, example: &'static str) -> Result<(Option<u64>, &'a str), UnitError> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() || !unit.bytes().all(|b| b.is_ascii_alphabetic()) {
        return Err(UnitError::Number { text: text.to_owned(), example });
    }
    Ok((number.parse().ok(), unit))
}

fn parse(text: &str, units: &[(&str, u64)], accepted: &'static str, example: &'static str) -> Result<u64, UnitError> {
    let (number, unit) = split(text, example)?;
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        let (text, unit) = (text.to_owned(), unit.to_owned());
        return Err(match unit.as_str() {
            "" => UnitError::NoUnit { text, accepted },
            _ => UnitError::Unit { text, unit, accepted },
        });
    };
    number.and_then(|n| n.checked_mul(*factor)).ok_or_else(|| UnitError::TooLarge { text: text.to_owned() })
}

/// Reads a size in bytes: a whole number and `B`, `KiB`, `MiB`, `GiB` or `TiB`; without a unit it
/// counts bytes.
///
/// # Errors
/// What is wrong with the text, which the error names.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    parse(text, SIZE_UNITS, SIZE_ACCEPTED, SIZE_EXAMPLE)
}

/// Reads a duration: a whole number and `us`, `ms`, `s`, `m` or `h`. The unit is never optional.
///
/// # Errors
/// What is wrong with the text, which the error names.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    parse(text, DURATION_UNITS, DURATION_ACCEPTED, DURATION_EXAMPLE).map(Duration::from_micros)
}

/// Writes a number of bytes for people: exact below 1 KiB, else one decimal in the largest unit
/// that leaves a number of at least 1.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    match SIZE_UNITS.iter().rev().find(|(_, factor)| bytes >= *factor && *factor > 1) {
        Some((unit, factor)) => format!("{:.1} {unit}", bytes as f64 / *factor as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("4KiB", 4096),
            ("64MiB", 64 << 20),
            ("1GiB", 1 << 30),
            ("2TiB", 2 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, us) in
            [("0s", 0), ("7us", 7), ("200ms", 200_000), ("5s", 5_000_000), ("1m", 60_000_000), ("2h", 7_200_000_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_micros(us)), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_is_named() {
        for text in ["", "KiB", "-1", "+1", " 1", "1 ", "1 KiB", "1.5MiB", "0x10", "1_000", "1KiB1", "\u{0661}KiB"] {
            let error = parse_size(text).unwrap_err();
            assert!(matches!(error, UnitError::Number { .. }), "{text:?} gave {error:?}");
            assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
        }
    }

    #[test]
    fn units_are_never_guessed() {
        for text in ["64MB", "64kib", "64K", "1KIB", "5s"] {
            assert!(matches!(parse_size(text), Err(UnitError::Unit { .. })), "{text}");
        }
        assert!(matches!(parse_duration("5"), Err(UnitError::NoUnit { .. })));
        for text in ["5S", "5sec", "5min", "1d", "5KiB"] {
            let error = parse_duration(text).unwrap_err();
            assert!(matches!(error, UnitError::Unit { .. }), "{text}");
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn what_64_bits_do_not_hold_is_too_large() {
        for text in ["18446744073709551616", "16777216TiB", "99999999999999999999999KiB"] {
            assert_eq!(parse_size(text), Err(UnitError::TooLarge { text: text.to_owned() }));
        }
        assert!(matches!(parse_duration("99999999999999999h"), Err(UnitError::TooLarge { .. })));
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit() {
        for (bytes, shown) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (64 << 20, "64.0 MiB")]
        {
            assert_eq!(show_size(bytes), shown);
        }
    }
}
