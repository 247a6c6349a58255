//! No value in a log, whatever the test: every value that a test stores anywhere is noted here, and every log, error and
//! page of numbers is searched for all of them when its daemon is done with.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::sync::Mutex;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

/// Shorter values would be found everywhere.
const SHORTEST: usize = 8;

/// Of long values, pieces of this length are looked for, at the beginning, in the middle and at the end.
const PIECE: usize = 32;

/// The secrets of all tests of this process.
static SECRETS: Mutex<Option<Secrets>> = Mutex::new(None);

/// Values to look for, in every form in which they might be written.
#[derive(Default)]
pub struct Secrets {
    values: HashSet<Vec<u8>>,
    /// Pieces by their first bytes.
    pieces: HashMap<[u8; SHORTEST], Vec<Vec<u8>>>,
    /// Which two bytes any piece begins with.
    beginnings: HashSet<[u8; 2]>,
    searched: Searched,
}

/// How much was searched, to show that something was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Searched {
    pub values: usize,
    pub texts: usize,
    pub bytes: usize,
}

impl Secrets {
    /// A value that must not be found.
    pub fn add(&mut self, value: &[u8]) {
        if value.len() < SHORTEST || !self.values.insert(value.to_vec()) {
            return;
        }
        self.searched.values += 1;
        let encoded = STANDARD.encode(value).into_bytes();
        let mut forms = vec![value.to_vec(), STANDARD_NO_PAD.encode(value).into_bytes(), encoded];
        if let Ok(text) = str::from_utf8(value) {
            let quoted = |text: &str| serde_json::to_string(text).unwrap().trim_matches('"').to_owned();
            // Once by whoever formats it, and once more by a log in JSON.
            forms.extend([quoted(text).into_bytes(), quoted(&quoted(text)).into_bytes()]);
            forms.push(format!("{text:?}").trim_matches('"').as_bytes().to_vec());
        }
        forms.push(format!("{value:?}").trim_matches(['[', ']']).as_bytes().to_vec());
        for form in forms {
            let middle = form.len().saturating_sub(PIECE) / 2;
            for from in [0, middle, form.len().saturating_sub(PIECE)] {
                self.add_piece(&form[from..form.len().min(from + PIECE)]);
            }
        }
    }

    fn add_piece(&mut self, piece: &[u8]) {
        let Some(beginning) = piece.first_chunk::<SHORTEST>() else { return };
        self.beginnings.insert([beginning[0], beginning[1]]);
        let known = self.pieces.entry(*beginning).or_default();
        if !known.iter().any(|known| known == piece) {
            known.push(piece.to_vec());
        }
    }

    /// Every line with a piece of a value in it.
    pub fn find(&mut self, text: &[u8]) -> Vec<String> {
        self.searched.texts += 1;
        self.searched.bytes += text.len();
        let is_found = |line: &&[u8]| {
            line.windows(SHORTEST).enumerate().any(|(at, window)| {
                self.beginnings.contains(&window[..2])
                    && self
                        .pieces
                        .get(window)
                        .is_some_and(|pieces| pieces.iter().any(|piece| line[at..].starts_with(piece)))
            })
        };
        let lines = text.split(|byte| *byte == b'\n').filter(is_found);
        lines.map(|line| String::from_utf8_lossy(line).into_owned()).collect()
    }

    pub fn searched(&self) -> Searched {
        self.searched
    }
}

fn with<T>(then: impl FnOnce(&mut Secrets) -> T) -> T {
    let mut secrets = SECRETS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    then(secrets.get_or_insert_default())
}

/// Notes a value that no daemon and no command may ever write down.
pub fn note(value: &[u8]) {
    with(|secrets| secrets.add(value));
}

/// Notes every value of a file of secrets, such as there are if a test has it broken.
pub fn note_file(text: &str) {
    let Ok(document) = text.parse::<toml::Table>() else { return };
    note_values(&toml::Value::Table(document));
}

fn note_values(value: &toml::Value) {
    match value {
        toml::Value::Array(values) => values.iter().for_each(note_values),
        toml::Value::Table(table) => {
            for (key, value) in table {
                match (key.as_str(), value) {
                    ("string", toml::Value::String(text)) => note(text.as_bytes()),
                    ("binary", toml::Value::String(text)) => {
                        note(&STANDARD.decode(text).unwrap_or_default());
                    }
                    _ => note_values(value),
                }
            }
        }
        _ => {}
    }
}

/// How much all tests of this process have searched so far.
pub fn searched() -> Searched {
    with(|secrets| secrets.searched())
}

/// Fails the test if a value is in this text; says so only, if the test fails already.
#[allow(clippy::print_stderr, reason = "what was searched is said where it can be looked for")]
pub fn check(what: &str, text: &[u8]) {
    let found = with(|secrets| secrets.find(text));
    if found.is_empty() {
        return;
    }
    let complaint = format!("a secret is in {what}:\n{}", found.join("\n"));
    if std::thread::panicking() {
        let _ = writeln!(std::io::stderr(), "{complaint}");
    } else {
        panic!("{complaint}");
    }
}
