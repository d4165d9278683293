//! The result backend: a Redis that the monitor reads, or nothing.

use kanchi_contract::{self as contract, BrokerUrl, BrokerUrlError, file};
use kanchi_crds::CeleryBrokerSpec;

use super::{Dereferenced, Error, Result};
use crate::secret_text::SecretText;

/// Checks the result backend and adds its URL to the files.
pub(super) fn validate(
    spec: &CeleryBrokerSpec,
    found: &Dereferenced,
    files: &mut Vec<(&'static str, SecretText)>,
) -> Result<Option<contract::ResultBackend>> {
    let backend = spec.celery.result_backend.as_ref();
    let Some((backend, value)) = backend.zip(found.value(file::RESULT_BACKEND_URL)) else {
        return Ok(None);
    };
    let in_secret = |source| Error::ResultBackendUrl {
        secret: backend.url_secret_ref.name.clone(),
        key: backend.url_secret_ref.key.clone(),
        source,
    };
    let text = value
        .expose_str()
        .ok_or_else(|| in_secret(BrokerUrlError::BadEncoding))?
        .trim();
    let url = match BrokerUrl::parse(text) {
        Ok(url) => url,
        Err(BrokerUrlError::UnsupportedScheme(scheme)) => return Err(Error::UnsupportedResultBackend { scheme }),
        Err(source) => return Err(in_secret(source)),
    };
    if url.transport() != contract::Transport::Redis {
        let scheme = url.scheme().to_owned();
        return Err(Error::UnsupportedResultBackend { scheme });
    }
    files.push((file::RESULT_BACKEND_URL, SecretText::new(text)));
    Ok(Some(contract::ResultBackend {
        global_key_prefix: backend.global_key_prefix.clone(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kanchi_crds::{Connection, ResultBackend, SecretKeyRef};

    fn checked(url: &str) -> Result<Vec<(&'static str, SecretText)>> {
        let mut spec = CeleryBrokerSpec::new(Connection::default());
        spec.celery.result_backend = Some(ResultBackend {
            url_secret_ref: SecretKeyRef {
                name: "orders".into(),
                key: "backend".into(),
            },
            global_key_prefix: "acme".into(),
        });
        let found = Dereferenced {
            values: [(file::RESULT_BACKEND_URL, SecretText::new(url))].into(),
        };
        let mut files = Vec::new();
        let backend = validate(&spec, &found, &mut files)?;
        assert_eq!(backend.unwrap().global_key_prefix, "acme");
        Ok(files)
    }

    #[test]
    fn a_redis_url_becomes_a_file() {
        let files = checked("rediss://:canary@cache/3\n").unwrap();
        assert_eq!(files[0].0, "result-backend-url");
        assert_eq!(files[0].1.expose(), b"rediss://:canary@cache/3");
    }

    #[test]
    fn without_the_field_nothing_is_read() {
        let spec = CeleryBrokerSpec::new(Connection::default());
        let backend = validate(&spec, &Dereferenced::default(), &mut Vec::new()).unwrap();
        assert!(backend.is_none());
    }

    #[test]
    fn another_scheme_is_named_with_its_field_and_nothing_else_of_the_url() {
        for (url, scheme) in [
            ("db+postgresql://u:canary@db/celery", "db+postgresql"),
            ("rpc://u:canary@rabbit", "rpc"),
            ("sentinel://:canary@s1:26379/0", "sentinel"),
            ("amqp://u:canary@rabbit", "amqp"),
        ] {
            let error = checked(url).unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains("spec.celery.resultBackend") && text.contains(scheme),
                "{text}"
            );
            assert!(!text.contains("canary") && !text.contains("rabbit"), "{text}");
            assert_eq!(error.category(), "UnsupportedTransport");
        }
    }

    #[test]
    fn a_wrong_url_names_field_and_secret_and_the_rule_alone() {
        let error = checked("redis://:canary@cache:port/0").unwrap_err();
        assert_eq!(
            error.to_string(),
            "failed to read the URL of spec.celery.resultBackend: its port is not a number between 1 and 65535; correct \
             key backend of Secret orders"
        );
        assert_eq!(error.category(), "SecretValueInvalid");
    }
}
