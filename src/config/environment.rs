//! The environment variables that the daemon and its commands heed. Nothing else reads the environment,
//! but for the AWS SDK, which has its own well-known ones.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use zeroize::Zeroizing;

use super::{Config, DEFAULT_PATH, DEFAULT_SOCKET, SourceConfig};

/// What the environment says.
#[derive(Clone, Default)]
pub struct Environment {
    /// `SMCACHED_CONFIG`: the configuration file.
    config: Option<PathBuf>,
    /// `SMCACHED_ADDRESS`: where client commands find the daemon.
    address: Option<String>,
    /// `SMCACHED_TOKEN`: the token that they present over TCP.
    token: Option<Zeroizing<String>>,
    /// `SMCACHED_TOKEN_FILE`: a file with that token.
    token_file: Option<PathBuf>,
    /// `SMCACHED_OPS_ADDRESS`: where `status` finds the ops listener.
    ops_address: Option<String>,
    /// `NO_COLOR` (<https://no-color.org>), or a terminal that has none.
    forbids_colours: bool,
    /// `AWS_REGION`, else `AWS_DEFAULT_REGION`, as the AWS SDK looks for them.
    aws_region: Option<String>,
    /// The endpoint that the environment sets for Secrets Manager, and the variable that does.
    endpoint_url: Option<(&'static str, String)>,
    /// Whom the AWS SDK takes itself for, by variable.
    aws_identity: Vec<(&'static str, String)>,
    /// `SECRET_ARN`: the secret that an init container of Flyte's webhook is to fetch.
    secret_arn: Option<String>,
    /// `SECRET_FILENAME`: the file in which it is to put it.
    secret_filename: Option<String>,
    /// `AWS_CA_BUNDLE`: the certificates to trust; the Rust SDK ignores it, so it is handed over.
    aws_ca_bundle: Option<PathBuf>,
    /// Where the AWS SDK finds credentials in files.
    credential_files: Vec<PathBuf>,
    /// `LISTEN_FDNAMES` of `sd_listen_fds(3)`.
    descriptor_names: Option<String>,
    /// `FDSTORE`, as systemd sets it since version 254, with `NOTIFY_SOCKET`.
    keeps_descriptors: bool,
    /// `LOG_SENSITIVE_BODIES`: makes the AWS SDK log what it receives.
    log_sensitive_bodies: bool,
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("config", &self.config)
            .field("address", &self.address)
            .field("token", &self.token.as_ref().map(|_| "[redacted]"))
            .finish_non_exhaustive()
    }
}

/// An access key's id names its account; the files may.
const IDENTITY: [&str; 5] =
    ["AWS_PROFILE", "AWS_ROLE_ARN", "AWS_ACCESS_KEY_ID", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"];

/// Something that the environment says and must not, or that it names and cannot be read.
#[derive(Debug, Error)]
pub enum EnvironmentError {
    /// The SDK would write secrets into the log.
    #[error("LOG_SENSITIVE_BODIES makes the AWS SDK log secrets; unset it")]
    LogSensitiveBodies,
    /// A file that a variable names.
    #[error("{variable} names {path}, which cannot be read: {error}", path = .path.display())]
    Unreadable {
        /// The variable.
        variable: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The endpoint of Secrets Manager is the daemon itself.
    #[error(
        "{set_by} is {given}, where this daemon itself listens ({address}): it would call itself. Unset it for the \
         daemon's process, set AWS_IGNORE_CONFIGURED_ENDPOINT_URLS=true there, or give AWS's own endpoint in [aws] \
         endpoint_url"
    )]
    CallsItself {
        /// The variable or key.
        set_by: &'static str,
        /// What it says.
        given: String,
        /// The listener.
        address: String,
    },
    /// An address in another form.
    #[error("SMCACHED_ADDRESS: got {given:?}; accepted: unix:/path/of/socket or http://host:port")]
    Address {
        /// What it says.
        given: String,
    },
    /// The same of the ops listener.
    #[error("SMCACHED_OPS_ADDRESS: got {given:?}; {OPS_ADDRESS}")]
    OpsAddress {
        /// What it says.
        given: String,
    },
}

/// How the ops listener is named.
const OPS_ADDRESS: &str = "accepted: host:port, such as 127.0.0.1:9273";

impl Environment {
    /// The process's own environment.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
    pub fn from_process() -> Self {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    /// Any other, for tests. Empty variables count as unset.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let value = |name: &str| lookup(name).filter(|value| !value.is_empty());
        Self {
            config: value("SMCACHED_CONFIG").map(PathBuf::from),
            address: value("SMCACHED_ADDRESS"),
            token: value("SMCACHED_TOKEN").map(Zeroizing::new),
            token_file: value("SMCACHED_TOKEN_FILE").map(PathBuf::from),
            ops_address: value("SMCACHED_OPS_ADDRESS"),
            forbids_colours: value("NO_COLOR").is_some() || value("TERM").is_some_and(|term| term == "dumb"),
            aws_region: value("AWS_REGION").or_else(|| value("AWS_DEFAULT_REGION")),
            endpoint_url: endpoint_url(value),
            aws_identity: IDENTITY.into_iter().filter_map(|name| Some((name, value(name)?))).collect(),
            secret_arn: value("SECRET_ARN"),
            secret_filename: value("SECRET_FILENAME"),
            aws_ca_bundle: value("AWS_CA_BUNDLE").map(PathBuf::from),
            credential_files: credential_files(value),
            descriptor_names: value("LISTEN_FDNAMES"),
            keeps_descriptors: value("NOTIFY_SOCKET").is_some()
                && value("FDSTORE").and_then(|most| most.parse::<u32>().ok()).is_some_and(|most| most > 0),
            log_sensitive_bodies: value("LOG_SENSITIVE_BODIES")
                .is_some_and(|value| value.eq_ignore_ascii_case("true")),
        }
    }

    /// Refuses what a daemon that holds secrets must not run under.
    pub fn check(&self) -> Result<(), EnvironmentError> {
        if self.log_sensitive_bodies { Err(EnvironmentError::LogSensitiveBodies) } else { Ok(()) }
    }

    /// The certificates, in PEM form, that `AWS_CA_BUNDLE` names.
    pub fn ca_bundle(&self) -> Result<Option<Vec<u8>>, EnvironmentError> {
        let Some(path) = &self.aws_ca_bundle else { return Ok(None) };
        let unreadable =
            |error| EnvironmentError::Unreadable { variable: "AWS_CA_BUNDLE", path: path.clone(), error };
        fs::read(path).map(Some).map_err(unreadable)
    }

    /// The region that the environment sets for AWS SDKs.
    pub fn region(&self) -> Option<&str> {
        self.aws_region.as_deref()
    }

    /// The endpoint that the environment sets for Secrets Manager.
    pub fn endpoint_url(&self) -> Option<&str> {
        self.endpoint_url.as_ref().map(|(_, url)| url.as_str())
    }

    /// Variables that decide as whom the AWS SDK asks, with what they say. None is a secret.
    pub fn aws_identity(&self) -> impl Iterator<Item = (&str, &str)> {
        self.aws_identity.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// Refuses a configuration by which the daemon would call itself: the variables that point programs on this host
    /// to it may be set for its own process too.
    pub fn check_upstream(&self, config: &Config) -> Result<(), EnvironmentError> {
        let (set_by, url) = match (&config.aws.endpoint_url, &self.endpoint_url) {
            (Some(url), _) => ("aws.endpoint_url", url),
            (None, Some((variable, url))) => (*variable, url),
            (None, None) => return Ok(()),
        };
        match config.own_address(url).filter(|_| config.source == SourceConfig::Aws) {
            Some(address) => Err(EnvironmentError::CallsItself {
                set_by,
                given: url.clone(),
                address: address.to_string(),
            }),
            None => Ok(()),
        }
    }

    /// The files from which the AWS SDK takes credentials, whether they exist or not.
    pub fn credential_files(&self) -> Vec<PathBuf> {
        self.credential_files.clone()
    }

    /// What the service manager calls the descriptors that it has passed, in their order.
    pub fn descriptor_names(&self) -> impl Iterator<Item = &str> {
        self.descriptor_names.iter().flat_map(|names| names.split(':'))
    }

    /// Whether the service manager keeps descriptors from one process to the next: those of memory too.
    pub fn keeps_descriptors(&self) -> bool {
        self.keeps_descriptors
    }

    /// The secret that an init container is to fetch.
    pub fn secret_arn(&self) -> Option<&str> {
        self.secret_arn.as_deref()
    }

    /// The file, as a path from its directory on, in which it is to put the secret.
    pub fn secret_filename(&self) -> Option<&str> {
        self.secret_filename.as_deref()
    }

    /// Where the daemon is, if `SMCACHED_ADDRESS` says.
    pub fn daemon_address(&self) -> Result<Option<ClientAddress>, EnvironmentError> {
        self.address.as_deref().map(ClientAddress::parse).transpose()
    }

    /// Where the ops listener is, if `SMCACHED_OPS_ADDRESS` says.
    pub fn ops_address(&self) -> Result<Option<String>, EnvironmentError> {
        let parse = |given: &String| {
            ClientAddress::parse_ops(given).map_err(|_| EnvironmentError::OpsAddress { given: given.clone() })
        };
        self.ops_address.as_ref().map(parse).transpose()
    }

    /// Whether a terminal may be sent colours.
    pub fn allows_colours(&self) -> bool {
        !self.forbids_colours
    }

    /// The token that client commands present: `SMCACHED_TOKEN`, else what `SMCACHED_TOKEN_FILE` holds.
    pub fn read_token(&self) -> Result<Option<Zeroizing<String>>, EnvironmentError> {
        if let Some(token) = &self.token {
            return Ok(Some(token.clone()));
        }
        let Some(path) = &self.token_file else { return Ok(None) };
        let unreadable = |error| EnvironmentError::Unreadable {
            variable: "SMCACHED_TOKEN_FILE",
            path: path.clone(),
            error,
        };
        let text = Zeroizing::new(fs::read_to_string(path).map_err(unreadable)?);
        Ok(Some(Zeroizing::new(text.trim().to_owned())))
    }
}

/// Where the environment has AWS SDKs call Secrets Manager
/// (<https://docs.aws.amazon.com/sdkref/latest/guide/feature-ss-endpoints.html>).
fn endpoint_url(value: impl Fn(&str) -> Option<String>) -> Option<(&'static str, String)> {
    if value("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS").is_some_and(|ignore| ignore.eq_ignore_ascii_case("true"))
    {
        return None;
    }
    let variables = ["AWS_ENDPOINT_URL_SECRETS_MANAGER", "AWS_ENDPOINT_URL"];
    variables.into_iter().find_map(|variable| Some((variable, value(variable)?)))
}

/// Shared files, and files with a token
/// (<https://docs.aws.amazon.com/sdkref/latest/guide/file-location.html>).
fn credential_files(value: impl Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let shared = |variable, usual: &str| {
        value(variable).map(PathBuf::from).or_else(|| Some(PathBuf::from(value("HOME")?).join(usual)))
    };
    let token = |variable| value(variable).map(PathBuf::from);
    let files = [
        shared("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"),
        shared("AWS_CONFIG_FILE", ".aws/config"),
        token("AWS_WEB_IDENTITY_TOKEN_FILE"),
        token("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
    ];
    files.into_iter().flatten().collect()
}

/// The configuration file to use: the one of the command line, else of the environment, else the usual
/// one if it exists, else none: the built-in defaults.
pub fn config_path(flag: Option<PathBuf>, environment: &Environment) -> Option<PathBuf> {
    flag.or_else(|| environment.config.clone()).or_else(|| {
        let usual = PathBuf::from(DEFAULT_PATH);
        usual.exists().then_some(usual)
    })
}

/// Where client commands find the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientAddress {
    /// A Unix socket.
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

impl ClientAddress {
    /// `--socket`, else `$SMCACHED_ADDRESS`, else the default socket.
    pub fn find(socket: Option<&Path>, environment: &Environment) -> Result<Self, EnvironmentError> {
        match socket {
            Some(path) => Ok(Self::Unix(path.to_owned())),
            None => Ok(environment.daemon_address()?.unwrap_or_else(|| Self::Unix(DEFAULT_SOCKET.into()))),
        }
    }

    /// `unix:/path` or `http://host:port`.
    pub fn parse(text: &str) -> Result<Self, EnvironmentError> {
        let unix = text.strip_prefix("unix:").map(|path| path.strip_prefix("//").unwrap_or(path));
        if let Some(path) = unix.filter(|path| path.starts_with('/')) {
            return Ok(Self::Unix(path.into()));
        }
        authority(text.strip_prefix("http://"))
            .map(|authority| Self::Tcp(authority.to_owned()))
            .ok_or_else(|| EnvironmentError::Address { given: text.to_owned() })
    }

    /// `host:port` of an ops listener; `http://` before it is no mistake.
    pub fn parse_ops(text: &str) -> Result<String, &'static str> {
        authority(Some(text.strip_prefix("http://").unwrap_or(text))).map(str::to_owned).ok_or(OPS_ADDRESS)
    }
}

/// `host:port`, with nothing but a slash after it.
fn authority(text: Option<&str>) -> Option<&str> {
    let authority = text.map(|text| text.strip_suffix('/').unwrap_or(text))?;
    let is_authority = authority
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        && !authority.contains(['/', '@', '?', '#', ' ']);
    is_authority.then_some(authority)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        Environment::from_lookup(|name| {
            pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_command_line_comes_before_the_environment() {
        let set = environment(&[("SMCACHED_CONFIG", "/a"), ("SMCACHED_ADDRESS", "unix:/s")]);
        assert_eq!(config_path(Some("/b".into()), &set), Some("/b".into()));
        assert_eq!(config_path(None, &set), Some("/a".into()));
        let flag = ClientAddress::find(Some(Path::new("/t")), &set).unwrap();
        assert_eq!(flag, ClientAddress::Unix("/t".into()));
        assert_eq!(ClientAddress::find(None, &set).unwrap(), ClientAddress::Unix("/s".into()));
        let unset = ClientAddress::find(None, &environment(&[])).unwrap();
        assert_eq!(unset, ClientAddress::Unix(DEFAULT_SOCKET.into()));
    }

    #[test]
    fn addresses_have_two_forms() {
        let tcp = |text: &str| ClientAddress::Tcp(text.to_owned());
        assert_eq!(ClientAddress::parse("http://127.0.0.1:2773").unwrap(), tcp("127.0.0.1:2773"));
        assert_eq!(ClientAddress::parse("http://[::1]:2773/").unwrap(), tcp("[::1]:2773"));
        assert_eq!(ClientAddress::parse("unix:///s").unwrap(), ClientAddress::Unix("/s".into()));
        for text in ["", "127.0.0.1:2773", "https://x:1", "http://x", "http://:1", "http://x:1/y", "unix:s"] {
            assert!(ClientAddress::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_token_comes_from_the_variable_or_its_file_and_is_never_shown() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        fs::write(&file, "sesame\n").unwrap();
        let by_file = environment(&[("SMCACHED_TOKEN_FILE", file.to_str().unwrap())]);
        assert_eq!(**by_file.read_token().unwrap().unwrap(), *"sesame");
        let by_name = environment(&[("SMCACHED_TOKEN", "sesame")]);
        assert_eq!(**by_name.read_token().unwrap().unwrap(), *"sesame");
        assert!(!format!("{by_name:?}").contains("sesame"));
        let missing = environment(&[("SMCACHED_TOKEN_FILE", "/none")]);
        assert!(missing.read_token().unwrap_err().to_string().contains("SMCACHED_TOKEN_FILE names /none"));
    }

    #[test]
    fn logging_of_bodies_is_refused() {
        assert!(environment(&[("LOG_SENSITIVE_BODIES", "TRUE")]).check().is_err());
        assert!(environment(&[("LOG_SENSITIVE_BODIES", "false")]).check().is_ok());
    }

    #[test]
    fn an_endpoint_that_is_the_daemon_itself_is_refused_and_any_other_is_not() {
        let config = |lines: &str| Config::parse("t.toml", lines).unwrap();
        let default = config("");
        for url in [
            "http://127.0.0.1:2773",
            "http://localhost:2773/",
            "http://[::1]:2773",
            "http://0.0.0.0:2773/x?y",
            "http://127.9.9.9:2773",
            "http://LOCALHOST:2773",
            "http://127.0.0.1:9273",
            "http://user@localhost:2773",
        ] {
            for variable in ["AWS_ENDPOINT_URL_SECRETS_MANAGER", "AWS_ENDPOINT_URL"] {
                let error = environment(&[(variable, url)]).check_upstream(&default).unwrap_err().to_string();
                assert!(error.contains(variable) && error.contains("would call itself"), "{error}");
            }
        }
        for url in [
            "http://127.0.0.1:5000",
            "https://secretsmanager.us-west-2.amazonaws.com",
            "http://10.0.0.1:2773",
            "",
        ] {
            let set = environment(&[("AWS_ENDPOINT_URL_SECRETS_MANAGER", url)]);
            assert!(set.check_upstream(&default).is_ok(), "{url}");
        }
        let set = ("AWS_ENDPOINT_URL", "http://127.0.0.1:2773");
        let ignoring = environment(&[set, ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")]);
        assert!(ignoring.check_upstream(&default).is_ok());
        let elsewhere = config("[aws]\nendpoint_url = \"https://secretsmanager.us-west-2.amazonaws.com\"");
        assert!(environment(&[set]).check_upstream(&elsewhere).is_ok(), "the file comes first");
        let itself = config("[aws]\nendpoint_url = \"http://localhost:2773\"");
        let error = environment(&[]).check_upstream(&itself).unwrap_err().to_string();
        assert!(error.contains("aws.endpoint_url is http://localhost:2773"), "{error}");
        let other_port = config("[[listener]]\ntcp = \"127.0.0.1:80\"");
        assert!(
            environment(&[("AWS_ENDPOINT_URL", "http://localhost")]).check_upstream(&other_port).is_err()
        );
        assert!(environment(&[set]).check_upstream(&other_port).is_ok());
        let everywhere = config("[[listener]]\ntcp = \"0.0.0.0:2773\"\nallow_non_loopback = true");
        assert!(environment(&[set]).check_upstream(&everywhere).is_err());
    }

    proptest! {
        #[test]
        fn parsing_an_address_never_panics(text in ".{0,40}") {
            let _ = ClientAddress::parse(&text);
        }
    }
}
