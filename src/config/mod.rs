//! The typed configuration: the only module that reads files and the environment.
