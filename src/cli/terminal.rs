//! How a report looks to whoever reads it: wrapped to the width of a terminal, with colours where they can be seen.

use std::io::{self, IsTerminal, Write};

use super::{Exit, complain};
use crate::config::Environment;
use crate::ops::Level;

/// Of a terminal that does not say.
const USUAL_WIDTH: usize = 80;

/// A text beside a name gets this many columns at least; else it goes below.
const NARROWEST_TEXT: usize = 32;

/// What is below a name is indented by this.
const INDENT: usize = 4;

/// A report on its way to standard output.
#[derive(Debug)]
pub(super) struct Page {
    text: String,
    /// Columns; `None` where lines are left as they are, for other programs to read.
    width: Option<usize>,
    has_colours: bool,
}

impl Page {
    /// For standard output as it is.
    pub(super) fn new(environment: &Environment) -> Self {
        let is_terminal = io::stdout().is_terminal();
        let width =
            || terminal_size::terminal_size_of(io::stdout()).map_or(USUAL_WIDTH, |(width, _)| width.0.into());
        Self {
            text: String::new(),
            width: is_terminal.then(width),
            has_colours: is_terminal && environment.allows_colours(),
        }
    }

    /// A line by itself.
    pub(super) fn line(&mut self, text: &str) {
        self.rows(0, Level::Good, text);
    }

    /// An empty line.
    pub(super) fn gap(&mut self) {
        self.text.push('\n');
    }

    /// A name and what is said of it, which begins at column `at`, or below the name where that leaves too little room.
    pub(super) fn row(&mut self, name: &str, at: usize, level: Level, text: &str) {
        let name = printable(name);
        let columns = name.chars().count();
        let is_narrow = self.width.is_some_and(|width| width < at + NARROWEST_TEXT);
        if is_narrow || columns >= at {
            if !name.is_empty() {
                self.text.push_str(&name);
                self.text.push('\n');
            }
            self.text.push_str(&" ".repeat(INDENT));
            self.rows(INDENT, level, text);
        } else {
            self.text.push_str(&name);
            self.text.push_str(&" ".repeat(at - columns));
            self.rows(at, level, text);
        }
    }

    /// A text from column `at` on.
    fn rows(&mut self, at: usize, level: Level, text: &str) {
        let text = printable(text);
        let lines = match self.width {
            Some(width) => wrapped(&text, width.saturating_sub(at)),
            None => vec![text],
        };
        for (index, line) in lines.iter().enumerate() {
            if index > 0 {
                self.text.push_str(&" ".repeat(at));
            }
            self.text.push_str(&self.painted(level, line));
            self.text.push('\n');
        }
    }

    fn painted(&self, level: Level, text: &str) -> String {
        // Select Graphic Rendition of ECMA-48: yellow, red.
        let colour = match level {
            Level::Warning => "33",
            Level::Bad => "31",
            Level::Good => return text.to_owned(),
        };
        if self.has_colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Prints it.
    pub(super) fn print(self) -> Result<(), Exit> {
        print(self.text.as_bytes())
    }
}

/// Writes to standard output. That nobody reads any more is no failure.
pub(super) fn print(text: &[u8]) -> Result<(), Exit> {
    let mut output = io::stdout().lock();
    match output.write_all(text).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            complain(&format!("cannot write to standard output: {error}"));
            Err(Exit::Failure)
        }
        _ => Ok(()),
    }
}

/// Without what terminals take for commands.
fn printable(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// Lines of at most so many columns, broken between words where that is possible.
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let columns = columns.max(1);
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split_whitespace() {
        let mut rest: Vec<char> = word.chars().collect();
        let has_room = used > 0 && used + 1 + rest.len() <= columns;
        if used > 0 && !has_room {
            lines.push(String::new());
            used = 0;
        }
        while rest.len() > columns {
            let after = rest.split_off(columns);
            append(&mut lines, rest);
            lines.push(String::new());
            rest = after;
        }
        if has_room {
            append(&mut lines, vec![' ']);
            used += 1;
        }
        used += rest.len();
        append(&mut lines, rest);
    }
    lines
}

fn append(lines: &mut [String], characters: Vec<char>) {
    if let Some(line) = lines.last_mut() {
        line.extend(characters);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn page(width: Option<usize>, has_colours: bool) -> Page {
        Page { text: String::new(), width, has_colours }
    }

    #[test]
    fn a_text_stands_beside_its_name_or_below_it() {
        let text = "one two three four five six seven eight nine";
        let shown = |width| {
            let mut page = page(width, false);
            page.row("name", 8, Level::Good, text);
            page.text
        };
        assert_eq!(shown(None), format!("name    {text}\n"));
        assert_eq!(shown(Some(40)), "name    one two three four five six\n        seven eight nine\n");
        assert_eq!(shown(Some(20)), "name\n    one two three\n    four five six\n    seven eight nine\n");
    }

    #[test]
    fn only_what_worries_is_coloured_and_nothing_commands_the_terminal() {
        let shown = |level, has_colours| {
            let mut page = page(Some(80), has_colours);
            page.row("n", 2, level, "a\x1b[2Jb");
            page.text
        };
        assert_eq!(shown(Level::Good, true), "n a [2Jb\n");
        assert_eq!(shown(Level::Bad, true), "n \x1b[31ma [2Jb\x1b[0m\n");
        assert_eq!(shown(Level::Bad, false), "n a [2Jb\n");
    }

    proptest! {
        #[test]
        fn wrapping_keeps_every_word_within_the_columns(text in "[a-z ]{0,60}", columns in 1_usize..30) {
            let lines = wrapped(&text, columns);
            prop_assert!(lines.iter().all(|line| line.chars().count() <= columns));
            let letters = |text: &str| text.replace(' ', "");
            prop_assert_eq!(letters(&lines.concat()), letters(&text));
        }
    }
}
