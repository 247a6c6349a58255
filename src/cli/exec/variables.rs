//! Which variable gets which secret: `--env`, `--env-file` and `--flyte`, read and checked before anything is asked.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use crate::cli::daemon::Target;
use crate::secret::{Arn, SecretPath};

/// The variables, each with another name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Variables(Vec<Variable>);

/// A variable and the secret that it gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Variable {
    /// Its name.
    pub(super) name: String,
    /// The secret as it was written, for messages.
    pub(super) reference: String,
    /// The secret as it is asked for.
    pub(super) secret: Target,
    /// The field, if only that is wanted.
    pub(super) field: Option<String>,
}

impl Variables {
    /// From the command line and the files that it names, or everything that is wrong with them.
    pub(super) fn collect(env: &[String], files: &[PathBuf], flyte: &[String]) -> Result<Self, Vec<String>> {
        let (mut variables, mut errors) = (Vec::new(), Vec::new());
        let mut take = |place: &str, parsed: Result<Variable, String>| match parsed {
            Ok(variable) => variables.push((place.to_owned(), variable)),
            Err(error) => errors.push(format!("{place}: {error}")),
        };
        for text in env {
            take("--env", Variable::parse(text));
        }
        for path in files {
            let text = match fs::read_to_string(path) {
                Ok(text) => text,
                Err(error) => {
                    take("--env-file", Err(format!("{} cannot be read: {error}", path.display())));
                    continue;
                }
            };
            for (number, line) in text.lines().enumerate() {
                let line = line.trim();
                if !line.is_empty() && !line.starts_with('#') {
                    take(&format!("{}:{}", path.display(), number + 1), Variable::parse(line));
                }
            }
        }
        for text in flyte {
            take("--flyte", Variable::parse_flyte(text));
        }
        errors.extend(clashes(&variables));
        if errors.is_empty() {
            Ok(Self(variables.into_iter().map(|(_, variable)| variable).collect()))
        } else {
            Err(errors)
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Variable> {
        self.0.iter()
    }
}

/// Variables that more than one secret would go to.
fn clashes(variables: &[(String, Variable)]) -> Vec<String> {
    let mut first: HashMap<&str, &(String, Variable)> = HashMap::new();
    let mut errors = Vec::new();
    for entry in variables {
        let (place, variable) = entry;
        match first.get(variable.name.as_str()) {
            Some((at, other)) => errors.push(format!(
                "{place}: {} is set to {} and, by {at}, to {}; one variable holds one secret",
                variable.name, variable.reference, other.reference
            )),
            None => {
                first.insert(&variable.name, entry);
            }
        }
    }
    errors
}

impl Variable {
    /// `NAME=<group>/<key>[#field]`.
    fn parse(text: &str) -> Result<Self, String> {
        let Some((name, reference)) = text.split_once('=') else {
            return Err(format!("got {text:?}; accepted: NAME=GROUP/KEY or NAME=GROUP/KEY#FIELD"));
        };
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(format!("{name:?} cannot be a variable's name"));
        }
        // No secret's name has a `#`.
        let (word, field) = match reference.split_once('#') {
            Some((_, "")) => return Err(format!("{name}: a field must follow the # in {reference:?}")),
            Some((word, field)) => (word, Some(field.to_owned())),
            None => (reference, None),
        };
        SecretPath::parse(word).map_err(|error| format!("{name}: {reference:?} names no secret: {error}"))?;
        let (name, reference) = (name.to_owned(), reference.to_owned());
        Ok(Self { name, reference, secret: Target::of_word(word), field })
    }

    /// `<group>/<key>`, for the variable in which flytekit looks for it: `_FSEC_<GROUP>_<KEY>`.
    fn parse_flyte(word: &str) -> Result<Self, String> {
        let path = SecretPath::parse(word).map_err(|error| format!("{word:?} names no secret: {error}"))?;
        let (group, key) = match &path {
            SecretPath::Grouped { group, key, .. } => (group.as_str(), key.as_str()),
            // Flyte cuts an ARN after `:secret:`.
            SecretPath::Id(id) if Arn::is_claimed_by(id.as_str()) => {
                id.as_str().split_at(id.as_str().len() - id.name().len())
            }
            SecretPath::Id(_) => {
                return Err(format!("got {word:?}; accepted: GROUP/KEY, as flytekit has both"));
            }
        };
        let name = format!("_FSEC_{group}_{key}").to_uppercase();
        Ok(Self { name, reference: word.to_owned(), secret: Target::of_word(word), field: None })
    }

    /// What is asked for.
    pub(super) fn target(&self) -> Target {
        match &self.field {
            Some(field) => self.secret.clone().with("field", field),
            None => self.secret.clone(),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::slice;

    use super::*;

    const GROUP: &str = "arn:aws:secretsmanager:us-west-2:123456789012:secret:";

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    pub(in crate::cli::exec) fn variables(env: &[&str]) -> Variables {
        Variables::collect(&strings(env), &[], &[]).unwrap()
    }

    fn errors(env: &[&str], flyte: &[&str]) -> String {
        Variables::collect(&strings(env), &[], &strings(flyte)).unwrap_err().join("\n")
    }

    #[test]
    fn a_variable_gets_a_secret_or_a_field_of_it() {
        let given =
            variables(&["A=team-a/db", "B=team-a/db#pass/w=ord", "C=team-a/db#/users/0", "D=n%2Fame"]);
        let targets: Vec<String> = given.iter().map(|variable| variable.target().to_string()).collect();
        assert_eq!(
            targets,
            [
                "/secret/team-a/db",
                "/secret/team-a/db?field=pass%2Fw%3Dord",
                "/secret/team-a/db?field=%2Fusers%2F0",
                "/secret/n%2Fame",
            ]
        );
    }

    #[test]
    fn flytes_variables_are_upper_case_and_otherwise_as_they_were() {
        let names = |flyte: &[&str]| {
            let given = Variables::collect(&[], &[], &strings(flyte)).unwrap();
            given.iter().map(|variable| variable.name.clone()).collect::<Vec<_>>()
        };
        let upper = "_FSEC_ARN:AWS:SECRETSMANAGER:US-WEST-2:123456789012:SECRET:_MYSECRET-ABCDEF";
        assert_eq!(names(&[&format!("{GROUP}/MySecret-AbCdEf")]), [upper]);
        assert_eq!(
            names(&[&format!("{GROUP}MySecret-AbCdEf")]),
            [upper],
            "a pasted ARN is cut in the same way"
        );
        assert_eq!(names(&["team-a/db/main", "g/x%2Fy"]), ["_FSEC_TEAM-A_DB/MAIN", "_FSEC_G_X/Y"]);
        assert!(errors(&[], &["plain"]).contains("accepted: GROUP/KEY"));
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let said = errors(&["A", "=a/b", "A B=a/b", "A=a/b#", "B=a//b/../c", "C="], &["a/"]);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 7, "{said}");
        for (line, part) in
            lines.iter().zip(["--env: got \"A\"", "\"\"", "\"A B\"", "field must", "B: ", "C: "])
        {
            assert!(line.contains(part), "{line}");
        }
    }

    #[test]
    fn two_secrets_for_one_variable_are_refused_and_both_named() {
        let said = errors(&["_FSEC_G_K=a/b"], &["g/k", "G/K"]);
        assert!(said.contains("--flyte: _FSEC_G_K is set to g/k and, by --env, to a/b"), "{said}");
        assert!(said.contains("is set to G/K"), "{said}");
    }

    #[test]
    fn a_file_has_one_variable_a_line_and_its_errors_have_line_numbers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secrets.env");
        fs::write(&path, "# comment\n\n A=a/b#c \r\nB=a/d\n").unwrap();
        let given = Variables::collect(&[], slice::from_ref(&path), &[]).unwrap();
        let read: Vec<_> =
            given.iter().map(|variable| (variable.name.as_str(), variable.reference.as_str())).collect();
        assert_eq!(read, [("A", "a/b#c"), ("B", "a/d")]);
        fs::write(&path, "A=a/b\nnonsense\n\nA=c/d\n").unwrap();
        let said = Variables::collect(&[], slice::from_ref(&path), &[]).unwrap_err();
        assert!(said[0].starts_with(&format!("{}:2: got \"nonsense\"", path.display())), "{said:?}");
        assert!(said[1].starts_with(&format!("{}:4: A is set to c/d and, by ", path.display())), "{said:?}");
        let missing = Variables::collect(&[], &["/none/file".into()], &[]).unwrap_err();
        assert!(missing[0].contains("/none/file cannot be read"), "{missing:?}");
    }
}
