//! Query parameters: each must be known and given once; what it may say is the API's to decide.

use std::borrow::Cow;

use crate::secret::percent_decode;

/// What is wrong with a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum QueryError {
    /// A parameter that the route does not have; cut if long.
    Unknown(String),
    /// One that is given more than once.
    Repeated(&'static str),
    /// One whose value is not percent-encoded UTF-8, and why.
    Malformed(&'static str, String),
}

/// The parameters of `raw` with their decoded values, in the order of `known`; a `+` is a plus.
pub(super) fn parse<'a, const N: usize>(
    raw: Option<&'a str>,
    known: [&'static str; N],
) -> Result<[Option<Cow<'a, str>>; N], QueryError> {
    let mut values = [const { None }; N];
    let Some(raw) = raw.filter(|raw| !raw.is_empty()) else { return Ok(values) };
    for pair in raw.split('&') {
        let (given, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some((name, place)) = known.into_iter().zip(&mut values).find(|(name, _)| *name == given) else {
            return Err(QueryError::Unknown(given.chars().take(64).collect()));
        };
        let value = percent_decode(value).map_err(|error| QueryError::Malformed(name, error.to_string()))?;
        if place.replace(value).is_some() {
            return Err(QueryError::Repeated(name));
        }
    }
    Ok(values)
}
