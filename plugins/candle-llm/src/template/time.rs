//! Dates as Python's `strftime` writes them.

use jiff::Timestamp;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use minijinja::{Error, ErrorKind};

/// Directives that Python has otherwise, where no locale is set.
const PYTHONS: [(&str, &str); 5] =
    [("%f", "%6f"), ("%c", "%a %b %e %H:%M:%S %Y"), ("%x", "%m/%d/%y"), ("%X", "%H:%M:%S"), ("%r", "%I:%M:%S %p")];

/// The time in UTC.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    strftime(format, Timestamp::now())
}

fn strftime(format: &str, time: Timestamp) -> Result<String, Error> {
    let pythons = |part: &str| PYTHONS.iter().fold(part.to_owned(), |part, (from, to)| part.replace(from, to));
    let format: Vec<String> = format.split("%%").map(pythons).collect();
    let failed = |e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}"));
    strtime::format(format.join("%%"), &time.to_zoned_datetime(TimeZone::UTC)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::strftime;

    #[test]
    fn dates() {
        let at = |format: &str, seconds| strftime(format, Timestamp::from_second(seconds).expect("a time"));
        assert_eq!(at("%d %b %Y %A %H:%M", 1_709_210_096).expect("known"), "29 Feb 2024 Thursday 12:34");
        assert_eq!(at("%Y-%m-%d %B %a %S %%", 0).expect("known"), "1970-01-01 January Thu 00 %");
        // What transformers' templates ask of Python's besides.
        assert_eq!(at("%-d %y %j %I:%M %p", 1_709_210_096).expect("known"), "29 24 060 12:34 PM");
        // As `datetime.strftime` writes it in the C locale.
        for (directive, wanted) in [
            ("%a|%A|%w|%u", "Thu|Thursday|4|4"),
            ("%d|%-d|%e", "29|29|29"),
            ("%b|%B|%h|%m|%-m", "Feb|February|Feb|02|2"),
            ("%y|%Y|%C|%G|%V", "24|2024|20|2024|09"),
            ("%U|%W", "08|09"),
            ("%H|%-H|%I|%-I|%l|%k|%p", "12|12|12|12|12|12|PM"),
            ("%M|%-M|%S|%-S|%f", "34|34|56|56|000000"),
            ("%z|%Z|%s", "+0000|UTC|1709210096"),
            ("%c", "Thu Feb 29 12:34:56 2024"),
            ("%x|%X", "02/29/24|12:34:56"),
            ("%D|%F|%T|%R|%r", "02/29/24|2024-02-29|12:34:56|12:34|12:34:56 PM"),
            ("%n%t%%", "\n\t%"),
        ] {
            assert_eq!(at(directive, 1_709_210_096).expect(directive), wanted, "{directive}");
        }
        for unknown in ["%!", "%", "%d %"] {
            let error = at(unknown, 0).expect_err(unknown);
            assert!(error.to_string().contains("strftime_now"), "{error}");
        }
    }
}
