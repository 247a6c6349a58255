//! From a method and a raw path to a route. The path is not decoded here: what follows `/secret/` is the API's to cut.

use hyper::Method;

use super::dialect::Dialect;

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route<'a> {
    /// `/secret/<group>/<key>`: the native API, with the raw text after `/secret/`.
    Secret(&'a str),
    /// `/secretsmanager/get`: AWS's agent's API, and its Lambda extension's.
    AgentQuery,
    /// `/v1/<secretId>`: AWS's agent's API, with the raw text after `/v1/`.
    AgentPath(&'a str),
    /// `POST /`: AWS Secrets Manager's own protocol.
    Sdk,
    /// `/ping`: the process answers, as AWS's agent says it.
    Ping,
    /// `/healthz`: the process is ready.
    Health,
    /// Anything else.
    Unmatched,
}

impl<'a> Route<'a> {
    pub(super) fn of(method: &Method, path: &'a str) -> Self {
        match path {
            "/ping" => Self::Ping,
            "/healthz" => Self::Health,
            "/secretsmanager/get" => Self::AgentQuery,
            "/" if *method == Method::POST => Self::Sdk,
            _ => {
                let secret = path.strip_prefix("/secret/").map(Self::Secret);
                secret.or_else(|| path.strip_prefix("/v1/").map(Self::AgentPath)).unwrap_or(Self::Unmatched)
            }
        }
    }

    /// How errors are worded there.
    pub(super) fn dialect(&self) -> Dialect {
        match self {
            Self::Sdk => Dialect::Aws,
            Self::AgentQuery | Self::AgentPath(_) | Self::Ping => Dialect::Agent,
            Self::Secret(_) | Self::Health | Self::Unmatched => Dialect::Native,
        }
    }

    /// What may be done there.
    pub(super) fn methods(&self) -> Option<&'static [Method]> {
        match self {
            Self::Secret(_) | Self::Health => Some(&[Method::GET, Method::HEAD]),
            Self::AgentQuery | Self::AgentPath(_) | Self::Ping => Some(&[Method::GET]),
            Self::Sdk => Some(&[Method::POST]),
            Self::Unmatched => None,
        }
    }

    /// Whether it is everybody's, without a token.
    pub(super) fn is_health(&self) -> bool {
        matches!(self, Self::Ping | Self::Health)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_paths_match() {
        let get = |path| Route::of(&Method::GET, path);
        assert_eq!(get("/secret/a/b"), Route::Secret("a/b"));
        assert_eq!(get("/secret/"), Route::Secret(""));
        assert_eq!(get("/v1/a/b"), Route::AgentPath("a/b"));
        assert_eq!(get("/secretsmanager/get"), Route::AgentQuery);
        assert_eq!(Route::of(&Method::POST, "/"), Route::Sdk);
        for path in [
            "/secret",
            "/secrets/a",
            "//secret/a",
            "/./secret/a",
            "/SECRET/a",
            "/",
            "/ping/",
            "/healthz2",
            "/v1",
            "/secretsmanager/get/",
        ] {
            assert_eq!(get(path), Route::Unmatched, "{path}");
        }
    }
}
