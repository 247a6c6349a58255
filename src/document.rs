//! Reading TOML files strictly: every key is known, every error has its place, and all errors are
//! reported at once. For the configuration and for the file of secrets; in the latter, values are never
//! quoted.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

/// All that is wrong with a file. Displayed as one line an error: `file:line:column: key: what is wrong`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaints {
    lines: Vec<String>,
}

impl Complaints {
    /// A complaint about the file as a whole.
    pub fn about(file: &str, what: &impl fmt::Display) -> Self {
        Self { lines: vec![format!("{file}: {what}")] }
    }

    /// Each complaint, with its place.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }
}

impl fmt::Display for Complaints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))
    }
}

impl std::error::Error for Complaints {}

/// Whether complaints may quote what a file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quoting {
    /// They may: it is a configuration.
    Allowed,
    /// They may not: it holds secrets.
    Forbidden,
}

/// A file that is being read.
#[derive(Debug)]
pub struct Document<'a> {
    file: &'a str,
    text: &'a str,
    quoting: Quoting,
    complaints: RefCell<Vec<(usize, String)>>,
    known_keys: RefCell<BTreeSet<String>>,
}

impl<'a> Document<'a> {
    /// Reads `text` with `read`, which takes sections and keys apart; fails with all complaints, those
    /// about keys that were not taken included.
    pub fn read<T>(
        file: &'a str,
        text: &'a str,
        quoting: Quoting,
        read: impl FnOnce(&Section<'_>) -> Option<T>,
    ) -> Result<T, Complaints> {
        let document = Self::new(file, text, quoting);
        let value = document.read_root(read);
        match value {
            Some(value) if document.complaints.borrow().is_empty() => Ok(value),
            _ => Err(document.into_complaints()),
        }
    }

    /// Every key that `read` asks for, with `[]` for a place in a list and `<name>` for a name of the
    /// user's. For the test that compares the reference with the code.
    pub fn known_keys<T>(text: &str, read: impl FnOnce(&Section<'_>) -> Option<T>) -> BTreeSet<String> {
        let document = Document::new("", text, Quoting::Allowed);
        document.read_root(read);
        document.known_keys.into_inner()
    }

    fn new(file: &'a str, text: &'a str, quoting: Quoting) -> Self {
        Self { file, text, quoting, complaints: RefCell::default(), known_keys: RefCell::default() }
    }

    fn read_root<T>(&self, read: impl FnOnce(&Section<'_>) -> Option<T>) -> Option<T> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in &errors {
            let at = error.span().map_or(0, |span| span.start);
            // The parser's message names what it expected, never what it found.
            self.complain(at, &format!("not valid TOML: {}", error.message()));
        }
        if !errors.is_empty() {
            return None;
        }
        let root = Section {
            document: self,
            path: String::new(),
            generic_path: String::new(),
            span: 0..0,
            table: Some(table.get_ref()),
            taken: RefCell::default(),
        };
        let value = read(&root);
        root.refuse_the_rest();
        value
    }

    fn complain(&self, at: usize, what: &str) {
        // A value of several lines, or a key with escapes, is still one line to whoever reads the log.
        self.complaints.borrow_mut().push((at, what.replace(char::is_control, " ")));
    }

    fn into_complaints(self) -> Complaints {
        let mut complaints = self.complaints.into_inner();
        complaints.sort_by_key(|(at, _)| *at);
        let place = |at: usize| {
            let before = self.text.get(..at).unwrap_or(self.text);
            let line = before.matches('\n').count() + 1;
            let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
            format!("{}:{line}:{column}", self.file)
        };
        Complaints { lines: complaints.iter().map(|(at, what)| format!("{}: {what}", place(*at))).collect() }
    }

    fn quote(&self, span: Range<usize>) -> String {
        let given = self.text.get(span).unwrap_or_default();
        match self.quoting {
            Quoting::Forbidden => String::new(),
            Quoting::Allowed if given.chars().count() > 80 => {
                format!("got {}..; ", given.chars().take(80).collect::<String>())
            }
            Quoting::Allowed => format!("got {given}; "),
        }
    }
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub struct Entry<T> {
    /// The value.
    pub value: T,
    span: Range<usize>,
}

/// One table of a document.
#[derive(Debug)]
pub struct Section<'a> {
    document: &'a Document<'a>,
    path: String,
    generic_path: String,
    span: Range<usize>,
    /// `None` if the file has no such table.
    table: Option<&'a DeTable<'a>>,
    taken: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Section<'a> {
    /// Takes a key's value as `parse` understands it; `accepted` says what that is. `None` if the key is
    /// absent, or was wrong and complained about.
    pub fn get<T>(
        &self,
        key: &'static str,
        accepted: &str,
        parse: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Option<T> {
        self.entry(key, accepted, parse).map(|entry| entry.value)
    }

    /// As [`Section::get`], with the value's place, for complaints that involve other keys.
    pub fn entry<T>(
        &self,
        key: &'static str,
        accepted: &str,
        parse: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Option<Entry<T>> {
        self.parsed(key, accepted, parse, Self::refuse)
    }

    /// As [`Section::entry`], for what may hold a secret where it is wrong: the complaint does not quote it.
    pub fn private_entry<T>(
        &self,
        key: &'static str,
        accepted: &str,
        parse: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Option<Entry<T>> {
        self.parsed(key, accepted, parse, Self::refuse_unquoted)
    }

    fn parsed<T>(
        &self,
        key: &'static str,
        accepted: &str,
        parse: impl FnOnce(Value<'a>) -> Option<T>,
        refuse: fn(&Self, &str, &Range<usize>, &str),
    ) -> Option<Entry<T>> {
        let (value, span) = self.take(key)?;
        let parsed = parse(Value(value));
        if parsed.is_none() {
            refuse(self, key, &span, &format!("accepted: {accepted}"));
        }
        parsed.map(|value| Entry { value, span })
    }

    /// Takes a sub-table.
    pub fn section(&self, key: &'static str) -> Section<'a> {
        let (table, span) = match self.take(key) {
            Some((DeValue::Table(table), span)) => (Some(table), span),
            Some((_, span)) => {
                self.refuse(key, &span, &format!("accepted: a table, [{}]", self.path_of(key)));
                (None, span)
            }
            None => (None, self.span.clone()),
        };
        self.sub(self.path_of(key), join(&self.generic_path, key), span, table)
    }

    /// Takes a list of tables: `[[key]]`.
    pub fn sections(&self, key: &'static str) -> Vec<Section<'a>> {
        let generic = format!("{}[]", join(&self.generic_path, key));
        let Some((value, span)) = self.take(key) else { return Vec::new() };
        let DeValue::Array(items) = value else {
            self.refuse(key, &span, &format!("accepted: a list of tables, [[{}]]", self.path_of(key)));
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let path = format!("{}[{index}]", self.path_of(key));
            match item.get_ref() {
                DeValue::Table(table) => {
                    sections.push(self.sub(path, generic.clone(), item.span(), Some(table)));
                }
                _ => self.document.complain(item.span().start, &format!("{path}: accepted: a table")),
            }
        }
        sections
    }

    /// Takes a list whose items are texts or tables. A text comes with an empty section, which is its place.
    pub fn texts_or_sections(
        &self,
        key: &'static str,
        accepted: &str,
    ) -> Vec<(Option<&'a str>, Section<'a>)> {
        let generic = format!("{}[]", join(&self.generic_path, key));
        let Some((value, span)) = self.take(key) else { return Vec::new() };
        let DeValue::Array(items) = value else {
            self.refuse(key, &span, &format!("accepted: {accepted}"));
            return Vec::new();
        };
        let mut found = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let path = format!("{}[{index}]", self.path_of(key));
            let sub = |table| self.sub(path.clone(), generic.clone(), item.span(), table);
            match item.get_ref() {
                DeValue::String(text) => found.push((Some(&**text), sub(None))),
                DeValue::Table(table) => found.push((None, sub(Some(table)))),
                _ => self.document.complain(item.span().start, &format!("{path}: accepted: {accepted}")),
            }
        }
        found
    }

    /// Takes a table whose keys are names of the user's: `[key.<name>]`.
    pub fn named_sections(&self, key: &'static str) -> Vec<(String, Section<'a>)> {
        let outer = self.section(key);
        let mut sections = Vec::new();
        for (name, value) in outer.table.into_iter().flatten() {
            let text = name.get_ref().to_string();
            let path = join(&outer.path, &text);
            match value.get_ref() {
                DeValue::Table(table) => {
                    let generic = format!("{}.<name>", outer.generic_path);
                    sections.push((text, self.sub(path, generic, name.span(), Some(table))));
                }
                _ => {
                    self.document
                        .complain(value.span().start, &format!("{path}: accepted: a table, [{path}]"));
                }
            }
        }
        sections
    }

    /// Whether the file has this table.
    pub fn is_there(&self) -> bool {
        self.table.is_some()
    }

    /// Complains about an entry that was taken.
    pub fn contradicts<T>(&self, key: &str, entry: &Entry<T>, what: &str) {
        self.refuse(key, &entry.span, what);
    }

    /// Complains about the table as a whole.
    pub fn complain(&self, what: &str) {
        let path = if self.path.is_empty() { "the file" } else { &self.path };
        self.document.complain(self.span.start, &format!("{path}: {what}"));
    }

    /// Complains about every key that nobody took. To be called once all have been.
    pub fn refuse_the_rest(&self) {
        let taken = self.taken.borrow();
        for name in self.table.into_iter().flat_map(|table| table.keys()) {
            let given: &str = name.get_ref();
            if taken.contains(given) {
                continue;
            }
            let accepted: Vec<&str> = taken.iter().copied().collect();
            let similar = accepted.iter().find(|known| is_similar(known, given));
            let hint = similar.map(|known| format!("did you mean {known}? ")).unwrap_or_default();
            let what =
                format!("{}: unknown key; {hint}accepted: {}", self.path_of(given), accepted.join(", "));
            self.document.complain(name.span().start, &what);
        }
    }

    fn take(&self, key: &'static str) -> Option<(&'a DeValue<'a>, Range<usize>)> {
        self.taken.borrow_mut().insert(key);
        self.document.known_keys.borrow_mut().insert(join(&self.generic_path, key));
        let value = self.table?.get(key)?;
        Some((value.get_ref(), value.span()))
    }

    fn sub(
        &self,
        path: String,
        generic_path: String,
        span: Range<usize>,
        table: Option<&'a DeTable<'a>>,
    ) -> Self {
        Section { document: self.document, path, generic_path, span, table, taken: RefCell::default() }
    }

    fn refuse(&self, key: &str, span: &Range<usize>, what: &str) {
        let given = self.document.quote(span.clone());
        self.refuse_unquoted(key, span, &format!("{given}{what}"));
    }

    fn refuse_unquoted(&self, key: &str, span: &Range<usize>, what: &str) {
        self.document.complain(span.start, &format!("{}: {what}", self.path_of(key)));
    }

    fn path_of(&self, key: &str) -> String {
        join(&self.path, key)
    }
}

/// A value as the file has it.
#[derive(Debug, Clone, Copy)]
pub struct Value<'a>(&'a DeValue<'a>);

impl<'a> Value<'a> {
    /// A string.
    pub fn text(self) -> Option<&'a str> {
        self.0.as_str()
    }

    /// A non-negative integer.
    pub fn number(self) -> Option<u64> {
        let integer = self.0.as_integer()?;
        u64::from_str_radix(integer.as_str(), integer.radix()).ok()
    }

    /// `true` or `false`.
    pub fn boolean(self) -> Option<bool> {
        self.0.as_bool()
    }

    /// A list, each item as `parse` understands it.
    pub fn list<T>(self, parse: impl Fn(Value<'a>) -> Option<T>) -> Option<Vec<T>> {
        self.0.as_array()?.iter().map(|item| parse(Value(item.get_ref()))).collect()
    }

    /// A list of strings.
    pub fn texts(self) -> Option<Vec<String>> {
        self.list(|item| item.text().map(str::to_owned))
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Whether a typo lies between two words: one edit, or one begins with the other.
fn is_similar(known: &str, given: &str) -> bool {
    let fold = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let (known, given) = (fold(known), fold(given));
    let (long, short) = if known.len() >= given.len() { (&known, &given) } else { (&given, &known) };
    if short.len() >= 3 && long.starts_with(short.as_str()) {
        return true;
    }
    let common_head = long.bytes().zip(short.bytes()).take_while(|(a, b)| a == b).count();
    let tails = (&long.as_bytes()[common_head..], &short.as_bytes()[common_head..]);
    match long.len() - short.len() {
        0 => tails.0.get(1..) == tails.1.get(1..) || is_swapped(tails.0, tails.1),
        1 => tails.0.get(1..) == Some(tails.1),
        _ => false,
    }
}

fn is_swapped(left: &[u8], right: &[u8]) -> bool {
    matches!((left, right), ([a, b, rest @ ..], [c, d, others @ ..]) if a == d && b == c && rest == others)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str, quoting: Quoting) -> Result<(Option<u64>, Option<String>), Complaints> {
        Document::read("test.toml", text, quoting, |root| {
            let cache = root.section("cache");
            let size = cache.get("size", "a number", Value::number);
            let name = cache.get("name", "a word", |value| value.text().map(str::to_owned));
            cache.refuse_the_rest();
            Some((size, name))
        })
    }

    #[test]
    fn keys_are_taken_and_may_be_absent() {
        assert_eq!(read("", Quoting::Allowed).unwrap(), (None, None));
        let both = "[cache]\nsize = 0x10\nname = \"x\"\n";
        assert_eq!(read(both, Quoting::Allowed).unwrap(), (Some(16), Some("x".to_owned())));
    }

    #[test]
    fn all_errors_are_reported_at_once_with_their_places() {
        let text = "[cache]\nsize = \"big\"\n  nmae = 1\nother = 2\n[cash]\n";
        let lines = read(text, Quoting::Allowed).unwrap_err().lines().to_vec();
        assert_eq!(
            lines,
            [
                "test.toml:2:8: cache.size: got \"big\"; accepted: a number",
                "test.toml:3:3: cache.nmae: unknown key; did you mean name? accepted: name, size",
                "test.toml:4:1: cache.other: unknown key; accepted: name, size",
                "test.toml:5:2: cash: unknown key; accepted: cache",
            ]
        );
    }

    #[test]
    fn an_error_is_one_line_whatever_it_quotes() {
        let text = "[cache]\nsize = \"\"\"big\nand\"\"\"\n\"a\\nb\" = 1\n";
        let said = read(text, Quoting::Allowed).unwrap_err().to_string();
        assert_eq!(said.lines().count(), 2, "{said}");
        assert!(said.contains("got \"\"\"big and\"\"\"; ") && said.contains("cache.a b: unknown"), "{said}");
    }

    #[test]
    fn where_quoting_is_forbidden_no_value_is_shown() {
        for text in ["[cache]\nsize = \"hunter2\"", "[cache]\nsize = hunter2", "[cache]\nsize = \"hunter2"] {
            let complaints = read(text, Quoting::Forbidden).unwrap_err().to_string();
            assert!(
                complaints.starts_with("test.toml:2:") && !complaints.contains("hunter2"),
                "{complaints}"
            );
        }
    }

    #[test]
    fn similar_words_are_recognised() {
        for (known, given) in
            [("ttl", "tll"), ("name", "nmae"), ("max_bytes", "max-bytes"), ("token_file", "token")]
        {
            assert!(is_similar(known, given), "{known} {given}");
        }
        assert!(!is_similar("ttl", "mode"));
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in ".{0,200}") {
            let _ = read(&text, Quoting::Allowed);
        }

        #[test]
        fn similarity_never_panics(known in ".{0,12}", given in ".{0,12}") {
            is_similar(&known, &given);
        }
    }
}
