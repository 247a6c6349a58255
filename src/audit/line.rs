//! What a line looks like. Text of others is bounded and escaped down to ASCII, so that nobody can forge a line, not
//! even for a reader who takes U+2028 for the end of one.

use std::io;
use std::time::SystemTime;

use serde::{Serialize, Serializer};
use serde_json::ser::Formatter;
use time::OffsetDateTime;

use super::client::MAX_PROGRAM;
use super::queue::Entry;

/// The most bytes of a secret's id as they stand in a line: as many as an id may have.
const MAX_SECRET_ID: usize = 2048;

/// The most bytes of a listener's label: as many as a socket's path may have, amply.
const MAX_LISTENER: usize = 256;

/// The most bytes of a version id; AWS allows 64.
const MAX_VERSION_ID: usize = 64;

/// The most bytes of what a client calls its request.
const MAX_REQUEST_ID: usize = 64;

/// An event, in the order in which its parts stand in the line.
#[derive(Serialize)]
struct EventLine<'a> {
    time: Time,
    listener: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    program: Option<&'a str>,
    surface: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version_id: Option<&'a str>,
    outcome: &'a str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    age: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

/// What the trail says of itself.
#[derive(Serialize)]
struct GapLine {
    time: Time,
    event: &'static str,
    count: u64,
}

/// Appends the line of an event.
pub(super) fn event(entry: &Entry, lines: &mut Vec<u8>) {
    let event = &entry.event;
    append(
        &EventLine {
            time: Time(entry.time),
            listener: cut(&event.listener, MAX_LISTENER),
            uid: event.uid,
            gid: event.gid,
            pid: event.pid,
            program: event.program.as_deref().map(|text| cut(text, MAX_PROGRAM)),
            surface: event.surface,
            secret_id: event.secret_id.as_deref().map(|text| cut(text, MAX_SECRET_ID)),
            version_id: event.version_id.as_deref().map(|text| cut(text, MAX_VERSION_ID)),
            outcome: event.outcome,
            status: event.status,
            age: event.age,
            request_id: event.request_id.as_deref().map(|text| cut(text, MAX_REQUEST_ID)),
        },
        lines,
    );
}

/// Appends a line that says that `count` events are missing here, as they were `dropped` or have `failed`.
pub(super) fn gap(time: SystemTime, event: &'static str, count: u64, lines: &mut Vec<u8>) {
    append(&GapLine { time: Time(time), event, count }, lines);
}

fn append(line: &impl Serialize, lines: &mut Vec<u8>) {
    let mut serializer = serde_json::Serializer::with_formatter(&mut *lines, Ascii);
    // Plain structs into memory: nothing can fail.
    let _ = line.serialize(&mut serializer);
    lines.push(b'\n');
}

/// The beginning of `text` that takes at most `most` bytes in a line.
fn cut(text: &str, most: usize) -> &str {
    // Counted, since the compiler then looks at many bytes at a time.
    let is_escaped = |byte: &u8| !matches!(byte, b' '..=b'~') || matches!(byte, b'"' | b'\\');
    let is_plain = text.as_bytes().iter().filter(|byte| is_escaped(byte)).count() == 0;
    if is_plain && text.len() <= most {
        return text;
    }
    let mut length = 0;
    for (at, character) in text.char_indices() {
        length += match character {
            '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
            ' '..='\u{7f}' => 1,
            _ => 6 * character.len_utf16(),
        };
        if length > most {
            return &text[..at];
        }
    }
    text
}

/// RFC 3339, UTC, with milliseconds.
struct Time(SystemTime);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let time = OffsetDateTime::from(self.0);
        let (year, month, day) = time.to_calendar_date();
        let (hour, minute, second, millisecond) = time.to_hms_milli();
        // By hand: it is in every line, and to format it is as much work as all the rest of the line.
        let mut text = *b"0000-00-00T00:00:00.000Z";
        for (end, number) in [
            (4, year.unsigned_abs()),
            (7, u8::from(month).into()),
            (10, day.into()),
            (13, hour.into()),
            (16, minute.into()),
            (19, second.into()),
            (23, millisecond.into()),
        ] {
            write_before(&mut text[..end], number);
        }
        serializer.serialize_str(std::str::from_utf8(&text).map_err(serde::ser::Error::custom)?)
    }
}

/// Replaces the digits at the end of `text`.
fn write_before(text: &mut [u8], mut number: u32) {
    for place in text.iter_mut().rev().take_while(|place| place.is_ascii_digit()) {
        *place = b"0123456789"[(number % 10) as usize];
        number /= 10;
    }
}

/// Compact JSON with nothing but ASCII in it (RFC 8259 section 7).
struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: io::Write + ?Sized>(&mut self, writer: &mut W, text: &str) -> io::Result<()> {
        if text.is_ascii() {
            return writer.write_all(text.as_bytes());
        }
        for character in text.chars() {
            if character.is_ascii() {
                writer.write_all(&[character as u8])?;
            } else {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}
