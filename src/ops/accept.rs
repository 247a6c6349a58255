//! What a client would rather have, by `Accept` (RFC 9110, section 12.5.1): JSON unless it names HTML.

/// Whether these values of `Accept` name HTML, and JSON not as much.
pub(super) fn prefers_html(values: &[&str]) -> bool {
    let ranges = || values.iter().flat_map(|value| value.split(','));
    let weight = |name| ranges().filter_map(|range| weight(range, name)).fold(0.0, f64::max);
    weight("text/html") > weight("application/json")
}

/// How much this media range wants the type, if it names it. Ranges with an asterisk want nothing in particular.
fn weight(range: &str, name: &str) -> Option<f64> {
    let mut parts = range.split(';').map(str::trim);
    parts.next().filter(|media_type| media_type.eq_ignore_ascii_case(name))?;
    let quality =
        parts.find_map(|parameter| parameter.strip_prefix("q=").or_else(|| parameter.strip_prefix("Q=")));
    // What is malformed counts for nothing.
    Some(quality.map_or(1.0, |quality| quality.parse().unwrap_or(0.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_get_html_and_all_others_json() {
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";
        for html in [browser, "text/html", "TEXT/HTML; Q=0.1", "application/json;q=0.5, text/html"] {
            assert!(prefers_html(&[html]), "{html}");
        }
        let json =
            ["", "*/*", "text/*", "application/json", "application/json, text/html;q=0.9", "text/html;q=0"];
        for json in json.into_iter().chain(["text/html, application/json", "text/html;q=x", "text/htmlx"]) {
            assert!(!prefers_html(&[json]), "{json}");
        }
        assert!(prefers_html(&["*/*;q=0.1", "text/html"]), "of several fields");
        assert!(!prefers_html(&[]));
    }
}
