//! From a raw path to a route. The path is not decoded here: what follows `/secret/` is the API's to cut.

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route<'a> {
    /// `/secret/<group>/<key>`: the native API, with the raw text after `/secret/`.
    Secret(&'a str),
    /// `/ping`: the process answers.
    Ping,
    /// `/healthz`: the process is ready.
    Health,
    /// Anything else.
    Unmatched,
}

impl<'a> Route<'a> {
    pub(super) fn of(path: &'a str) -> Self {
        match path {
            "/ping" => Self::Ping,
            "/healthz" => Self::Health,
            _ => path.strip_prefix("/secret/").map_or(Self::Unmatched, Self::Secret),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_paths_match() {
        assert_eq!(Route::of("/secret/a/b"), Route::Secret("a/b"));
        assert_eq!(Route::of("/secret/"), Route::Secret(""));
        for path in
            ["/secret", "/secrets/a", "//secret/a", "/./secret/a", "/SECRET/a", "/", "/ping/", "/healthz2"]
        {
            assert_eq!(Route::of(path), Route::Unmatched, "{path}");
        }
    }
}
