//! How much a client wants a form of an answer: `Accept` (RFC 9110, section 12.5.1).

use hyper::header::{ACCEPT, HeaderMap};

/// The weight of a media type, from 0 to 1, where the client names it; 0 where it does not. Ranges with an asterisk want nothing in
/// particular, and what is malformed counts for nothing.
pub fn wish_for(media_type: &str, headers: &HeaderMap) -> f64 {
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let ranges = values.flat_map(|value| value.split(','));
    ranges.filter_map(|range| weight(range, media_type)).fold(0.0, f64::max)
}

fn weight(range: &str, media_type: &str) -> Option<f64> {
    let mut parts = range.split(';').map(str::trim);
    parts.next().filter(|name| name.eq_ignore_ascii_case(media_type))?;
    let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
    Some(quality.map_or(1.0, |quality| quality.parse().unwrap_or(0.0)))
}
