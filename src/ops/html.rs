//! The status as a page for a browser: no script, nothing from elsewhere, and every text escaped.

use std::fmt::{self, Write};

use super::report::{Level, Report, Row};

/// What the page is allowed to do: to look as it does.
pub(super) const POLICY: &str = "default-src 'none'; \
     style-src 'sha256-JHGeJ0YWH6ZDrJSssnYxslRT+Ya6IXA8eQTx/mRwhA0='; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Its hash is in [`POLICY`].
const STYLE: &str = include_str!("status.css");

/// The page of a report.
pub(super) fn page(report: &Report) -> String {
    // Writing to a String cannot fail.
    let mut page = String::new();
    let _ = write_page(&mut page, report);
    page
}

fn write_page(page: &mut String, report: &Report) -> fmt::Result {
    let Row { name, level, text } = &report.verdict;
    let (name, text, class) = (Escaped(name), Escaped(text), class(*level));
    write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>{name}: {text}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <h1>{name}</h1>\n<p class=\"{class}\">{text}</p>\n"
    )?;
    for section in &report.sections {
        writeln!(page, "<h2>{}</h2>\n<table>", Escaped(section.title))?;
        for row in &section.rows {
            write_row(page, row)?;
        }
        writeln!(page, "</table>")?;
    }
    page.write_str("</body>\n</html>\n")
}

fn write_row(page: &mut String, row: &Row) -> fmt::Result {
    let (name, class, text) = (Escaped(&row.name), class(row.level), Escaped(&row.text));
    writeln!(page, "<tr><th scope=\"row\">{name}</th><td class=\"{class}\">{text}</td></tr>")
}

fn class(level: Level) -> &'static str {
    match level {
        Level::Good => "good",
        Level::Warning => "warning",
        Level::Bad => "bad",
    }
}

/// Text that is nothing but text, within an element as within an attribute.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match character {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            other => f.write_char(other),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ops::report::tests::status;

    #[test]
    fn what_comes_from_outside_is_text() {
        let nasty = "<script>alert('x')</script>&\"";
        let status = status(|status| {
            status["groups"] =
                json!({ nasty: { "entries": 1, "stale_entries": 0, "oldest_entry_age_seconds": 0 } });
            status["listeners"] = json!({ nasty: { "connections": 1 } });
            status["version"] = json!(nasty);
            status["upstream"]["source"] = json!(nasty);
            status["upstream"]["last_error"] = json!({ "kind": nasty, "message": nasty, "seconds_ago": 1 });
            status["upstream"]["places"][0]["role_arn"] = json!(nasty);
            status["upstream"]["places"][0]["region"] = json!(nasty);
            status["ready"] = json!(false);
            status["not_ready_because"] = json!([nasty]);
        });
        let page = page(&Report::of(&status));
        let escaped = "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;&quot;";
        assert!(!page.contains("<script") && !page.contains("alert('"));
        // The reason is in the title and in the verdict.
        assert_eq!(page.matches(escaped).count(), 10, "{page}");
    }
}
