//! Bodies that are compressed, encoded, or of another serializer than JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kanchi_domain::{BodyEncoding, Limits, RawMessage, RejectReason, decode};

use super::ARRIVED;

/// `good(1)` as Python's modules write it, in base64.
const COMPRESSED: [(&str, &str); 5] = include!("../samples/compressed.in");

#[test]
fn every_compression_of_kombu_is_read() {
    for (name, text) in COMPRESSED {
        let body = STANDARD.decode(text).unwrap();
        let message = RawMessage {
            body: &body,
            content_type: Some("application/json"),
            compression: Some(name),
            ..RawMessage::default()
        };
        let decoded = decode(&message, ARRIVED, &Limits::default());
        assert_eq!(decoded.events.len(), 1, "{name}: {:?}", decoded.rejects);
        let wrapped = RawMessage {
            body: text.as_bytes(),
            body_encoding: BodyEncoding::Base64,
            ..message
        };
        assert_eq!(
            decode(&wrapped, ARRIVED, &Limits::default()).events,
            decoded.events,
            "{name}"
        );

        let small = Limits {
            max_decompressed_bytes: 20,
            ..Limits::default()
        };
        assert_eq!(
            decode(&message, ARRIVED, &small).rejects[0].reason,
            RejectReason::DecompressedOversize,
            "{name}"
        );
        for cut in 0..body.len() {
            let message = RawMessage {
                body: &body[..cut],
                ..message
            };
            let decoded = decode(&message, ARRIVED, &Limits::default());
            assert!(
                !decoded.rejects.is_empty() || decoded.events.len() == 1,
                "{name} cut at {cut}"
            );
        }
    }
    let message = RawMessage {
        body: b"x",
        compression: Some("application/x-rot13"),
        ..RawMessage::default()
    };
    assert_eq!(
        decode(&message, ARRIVED, &Limits::default()).rejects[0].reason,
        RejectReason::UnknownCompression
    );
    let message = RawMessage {
        body: b"!\xff",
        body_encoding: BodyEncoding::Base64,
        ..RawMessage::default()
    };
    assert!(decode(&message, ARRIVED, &Limits::default()).rejects.len() == 1);
}

#[test]
fn yaml_cannot_be_blown_up() {
    let yaml = |text: &str| {
        let message = RawMessage {
            body: text.as_bytes(),
            content_type: Some("application/x-yaml"),
            ..RawMessage::default()
        };
        decode(&message, ARRIVED, &Limits::default())
    };
    let big = format!("a: &a {}\nb:\n{}", "x".repeat(100_000), "- *a\n".repeat(50_000));
    assert_eq!(yaml(&big).rejects[0].reason, RejectReason::InvalidYaml);
    assert_eq!(yaml(&"[".repeat(10_000)).rejects[0].reason, RejectReason::InvalidYaml);
    assert_eq!(
        yaml("- 1\n- {type: task-started, uuid: t, hostname: w@h, timestamp: .nan, own: [.inf, 1]}\n")
            .events
            .len(),
        1
    );
    assert_eq!(yaml("a: [").rejects[0].reason, RejectReason::InvalidYaml);
    assert_eq!(yaml("5").rejects[0].reason, RejectReason::NotAnEvent);
    assert_eq!(yaml(&"x".repeat(600_000)).rejects[0].reason, RejectReason::Oversize);
}

#[test]
fn msgpack_cannot_be_blown_up() {
    let msgpack = |body: &[u8]| {
        let message = RawMessage {
            body,
            content_type: Some("application/x-msgpack"),
            ..RawMessage::default()
        };
        decode(&message, ARRIVED, &Limits::default())
    };
    assert_eq!(
        msgpack(b"\xdd\xff\xff\xff\xff").rejects[0].reason,
        RejectReason::Truncated
    );
    assert_eq!(
        msgpack(b"\xdf\xff\xff\xff\xff\xa1a").rejects[0].reason,
        RejectReason::Truncated
    );
    assert_eq!(
        msgpack(b"\x81\xa1a\xdb\xff\xff\xff\xffx").rejects[0].reason,
        RejectReason::Truncated
    );
    assert_eq!(
        msgpack(b"\x81\xa1a\xc1").rejects[0].reason,
        RejectReason::InvalidMsgpack
    );
    assert_eq!(msgpack(b"\x07").rejects[0].reason, RejectReason::NotAnEvent);
    assert_eq!(
        msgpack(&[&b"\x81\xa1a"[..], &vec![0x91; 100_000], b"\x01"].concat()).rejects[0].reason,
        RejectReason::MissingType
    );
    let two = [
        &b"\x92\x05\x83\xa4type\xac"[..],
        b"task-started",
        b"\xa4uuid\xc4\x01t\xa1b\xc4\x02\xff\x00",
    ]
    .concat();
    let decoded = msgpack(&two);
    assert_eq!(
        (decoded.events.len(), decoded.rejects[0].reason),
        (1, RejectReason::NotAnEvent)
    );
    assert_eq!(decoded.events[0].extra.as_deref(), Some(r#"{"b":"/wA="}"#));
}
