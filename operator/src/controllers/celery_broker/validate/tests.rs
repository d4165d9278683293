use super::*;
use kanchi_crds::{CeleryBrokerSpec, CeleryBrokerStatus, Connection, SecretKeyRef, Tls};

fn broker(connection: Connection) -> CeleryBroker {
    let mut broker = CeleryBroker::new("orders", CeleryBrokerSpec::new(connection));
    broker.metadata.namespace = Some("shop".into());
    broker.metadata.uid = Some("uid-1".into());
    broker
}

fn literal(url: &str) -> CeleryBroker {
    broker(Connection {
        url: Some(url.into()),
        ..Connection::default()
    })
}

fn referenced(value: &str) -> (CeleryBroker, Dereferenced) {
    let reference = SecretKeyRef {
        name: "orders-url".into(),
        key: "url".into(),
    };
    let broker = broker(Connection {
        url_secret_ref: Some(reference),
        ..Connection::default()
    });
    let found = Dereferenced {
        values: [(file::BROKER_URL, SecretText::new(value))].into(),
    };
    (broker, found)
}

#[test]
fn a_literal_url_gives_transport_and_endpoint() {
    let valid = validate(&literal("amqp://rabbit.shop.svc/orders"), &Dereferenced::default()).unwrap();
    assert_eq!(
        (valid.transport, valid.endpoint.as_str()),
        (Transport::RabbitMQ, "rabbit.shop.svc:5672/orders")
    );
    assert_eq!(valid.child, "orders-monitor");
    assert_eq!(valid.celery.event_queue.max_length_bytes, 1 << 30);
    assert_eq!(valid.retention.failed_days, 30);
}

#[test]
fn a_url_from_a_secret_is_trimmed_and_never_shown() {
    let (broker, found) = referenced("redis://:canary@cache/5\n");
    let valid = validate(&broker, &found).unwrap();
    assert_eq!(valid.url.expose(), b"redis://:canary@cache/5");
    assert_eq!(valid.endpoint, "cache:6379/5");
    assert!(!format!("{valid:?}").contains("canary"), "{valid:?}");
}

#[test]
fn a_wrong_url_in_a_secret_names_the_secret_and_not_the_url() {
    let (broker, found) = referenced("redis://:canary@cache:port");
    let error = validate(&broker, &found).unwrap_err();
    assert_eq!(error.category(), "SecretValueInvalid");
    let text = error.to_string();
    assert!(
        text.contains("key url of Secret orders-url") && !text.contains("canary"),
        "{text}"
    );
}

#[test]
fn an_unknown_scheme_is_an_unsupported_transport() {
    let (broker, found) = referenced("sentinel://:canary@cache");
    assert_eq!(
        validate(&broker, &found).unwrap_err().category(),
        "UnsupportedTransport"
    );
}

#[test]
fn tls_settings_need_an_encrypted_scheme() {
    let (mut broker, found) = referenced("amqp://u:canary@rabbit");
    broker.spec.connection.tls = Some(Tls::default());
    let error = validate(&broker, &found).unwrap_err();
    assert!(error.to_string().contains("use amqps"), "{error}");
}

#[test]
fn a_certificate_authority_must_be_pem() {
    let (mut broker, mut found) = referenced("amqps://u:canary@rabbit");
    let ca = SecretKeyRef {
        name: "ca".into(),
        key: "ca.crt".into(),
    };
    broker.spec.connection.tls = Some(Tls {
        ca_secret_ref: Some(ca),
        ..Tls::default()
    });
    found.values.insert(file::BROKER_CA, SecretText::new("canary"));
    let error = validate(&broker, &found).unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to read certificate authorities from key ca.crt of Secret ca: it is not PEM"
    );
    found
        .values
        .insert(file::BROKER_CA, SecretText::new("-----BEGIN CERTIFICATE-----\n"));
    assert_eq!(validate(&broker, &found).unwrap().files.len(), 1);
}

#[test]
fn history_of_one_transport_is_not_mixed_with_another() {
    let mut broker = literal("redis://cache/0");
    broker.status = Some(CeleryBrokerStatus {
        transport: Some(Transport::RabbitMQ),
        ..CeleryBrokerStatus::default()
    });
    assert_eq!(
        validate(&broker, &Dereferenced::default()).unwrap_err().category(),
        "TransportChanged"
    );
}

#[test]
fn names_of_one_service_that_differ_by_the_search_path_are_one_broker() {
    let watches = |url: &str| validate(&literal(url), &Dereferenced::default()).unwrap().watches;
    let short = watches("redis://cache/0");
    for same in [
        "redis://cache:6379",
        "redis://cache.shop/0",
        "redis://Cache.shop.svc",
        "redis://cache.shop.svc.cluster.local./0",
    ] {
        assert_eq!(watches(same), short, "{same}");
    }
    for other in [
        "redis://cache/1",
        "redis://cache.other/0",
        "redis://cache:6380/0",
        "amqp://cache",
    ] {
        assert_ne!(watches(other), short, "{other}");
    }
    let mut prefixed = literal("redis://cache/0");
    prefixed.spec.celery.global_key_prefix = "app:".into();
    assert_ne!(validate(&prefixed, &Dereferenced::default()).unwrap().watches, short);
}

#[test]
fn the_older_of_two_wins_and_the_uid_breaks_a_tie() {
    let valid = validate(&literal("redis://cache/0"), &Dereferenced::default()).unwrap();
    let claim = |created: &str, uid: &str| Claim {
        created: created.into(),
        uid: uid.into(),
        name: uid.into(),
    };
    let own = claim("2026-01-02T00:00:00Z", "b");
    assert!(refuse_duplicate(&own, &valid, &[]).is_ok());
    assert!(refuse_duplicate(&own, &valid, &[claim("2026-01-03T00:00:00Z", "a")]).is_ok());
    assert!(refuse_duplicate(&own, &valid, &[claim("2026-01-02T00:00:00Z", "c")]).is_ok());
    let refused = refuse_duplicate(&own, &valid, &[claim("2026-01-02T00:00:00Z", "a")]).unwrap_err();
    assert_eq!(refused.category(), "DuplicateBroker");
    assert!(
        refused.to_string().contains("a of this namespace is older"),
        "{refused}"
    );
}
