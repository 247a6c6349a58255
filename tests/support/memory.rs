//! Looks for values in the memory of a running process, from outside: a scanner inside would find itself.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The shortest piece of a value that counts as found.
const PIECE: usize = 16;

/// How far apart the places are that are looked at: any piece contains a whole step.
const STEP: usize = 8;

/// Values to look for, in every form in which they travel: as they are, escaped for JSON, in base64.
pub struct Canaries {
    forms: Vec<Form>,
    /// Every step of every form, and where it is from.
    steps: HashMap<[u8; STEP], Vec<(usize, usize)>>,
}

struct Form {
    name: String,
    bytes: Vec<u8>,
}

/// A piece of a value that was found.
pub struct Leftover {
    name: String,
    /// From here in the value.
    from: usize,
    length: usize,
    /// There in the process.
    place: String,
}

impl fmt::Debug for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, from, length, place } = self;
        write!(f, "{length} bytes of {name} from {from} at {place}")
    }
}

impl Leftover {
    /// Which value it is of.
    pub fn is_of(&self, name: &str) -> bool {
        self.name.split(' ').next() == Some(name)
    }
}

impl Canaries {
    pub fn new<'a>(values: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let mut canaries = Self { forms: Vec::new(), steps: HashMap::new() };
        for (name, value) in values {
            canaries.add(name.to_owned(), value.to_vec());
            canaries.add(format!("{name} (in base64)"), STANDARD.encode(value).into_bytes());
            if let Ok(text) = str::from_utf8(value) {
                let quoted = serde_json::to_string(text).unwrap().into_bytes();
                canaries.add(format!("{name} (in JSON)"), quoted[1..quoted.len() - 1].to_vec());
            }
        }
        canaries
    }

    fn add(&mut self, name: String, bytes: Vec<u8>) {
        let form = self.forms.len();
        for (at, step) in bytes.windows(STEP).enumerate() {
            self.steps.entry(step.try_into().unwrap()).or_default().push((form, at));
        }
        self.forms.push(Form { name, bytes });
    }

    /// Every piece that is in the memory of a process, in whatever mapping it can be read. Panics if there is nothing
    /// to be read.
    pub fn find_in(&self, pid: u32) -> Vec<Leftover> {
        let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let (mut found, mut read) = (Vec::new(), 0);
        for line in maps.lines() {
            let mut words = line.split_whitespace();
            let (range, rights) = (words.next().unwrap(), words.next().unwrap());
            let what = words.nth(3).unwrap_or("anonymous");
            if !rights.starts_with('r') || what == "[vvar]" || what == "[vsyscall]" {
                continue;
            }
            let (start, end) = range.split_once('-').unwrap();
            let [start, end] = [start, end].map(|digits| u64::from_str_radix(digits, 16).unwrap());
            let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
            // What is gone meanwhile cannot be read.
            let Ok(count) = memory.read_at(&mut bytes, start) else { continue };
            read += count;
            let place = |at: usize| format!("{:#x} in {what} {range}", start + at as u64);
            found.extend(self.find(&bytes[..count], place));
        }
        assert!(read > 1 << 20, "only {read} bytes of the process could be read");
        found
    }

    fn find(&self, memory: &[u8], place: impl Fn(usize) -> String) -> Vec<Leftover> {
        let mut found: Vec<Leftover> = Vec::new();
        let mut past = 0;
        for at in (0..memory.len().saturating_sub(STEP)).step_by(STEP) {
            let step: [u8; STEP] = memory[at..at + STEP].try_into().unwrap();
            if at < past || step == [0; STEP] {
                continue;
            }
            for (form, from) in self.steps.get(&step).into_iter().flatten() {
                let Form { name, bytes } = &self.forms[*form];
                let before = memory[..at].iter().rev().zip(bytes[..*from].iter().rev());
                let before = before.take_while(|(found, wanted)| found == wanted).count();
                let after = memory[at..].iter().zip(&bytes[*from..]);
                let after = after.take_while(|(found, wanted)| found == wanted).count();
                if before + after >= PIECE.min(bytes.len()) {
                    past = at + after;
                    found.push(Leftover {
                        name: name.clone(),
                        from: from - before,
                        length: before + after,
                        place: place(at - before),
                    });
                    break;
                }
            }
        }
        found
    }
}
