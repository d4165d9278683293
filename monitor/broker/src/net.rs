//! TCP and TLS for both transports, with failures named precisely: neither client library tells a wrong certificate
//! authority from a refused connection well enough for a status condition.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use kanchi_contract::{BrokerUrl, Encryption, Verification};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::report::ConnectReason;
use crate::spec::TlsFiles;

/// Why there is no connection. The message never holds a credential.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to connect to the broker: {message}")]
pub(crate) struct ConnectError {
    pub(crate) reason: ConnectReason,
    pub(crate) message: String,
}

impl ConnectError {
    pub(crate) fn new(reason: ConnectReason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// A connected socket, encrypted or not.
pub(crate) enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Resolves, connects and, where the URL says so, makes the TLS handshake, all within the timeout.
pub(crate) async fn connect(
    url: &BrokerUrl,
    tls: Option<&TlsFiles>,
    timeout: Duration,
) -> Result<Socket, ConnectError> {
    let config = match url.encryption() {
        Encryption::Plain => None,
        Encryption::Tls(verification) => Some(client_config(tls, verification)?),
    };
    let attempt = async {
        let stream = connect_tcp(url).await?;
        match config {
            None => Ok(Socket::Plain(stream)),
            Some(config) => handshake(url, stream, config).await,
        }
    };
    match tokio::time::timeout(timeout, attempt).await {
        Ok(outcome) => outcome,
        Err(_elapsed) => {
            let message = format!("no answer from {} within {timeout:?}", server(url));
            Err(ConnectError::new(ConnectReason::Timeout, message))
        }
    }
}

fn server(url: &BrokerUrl) -> String {
    format!("{}:{}", url.host(), url.port())
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the operating system has many ways to say that there is no route"
)]
async fn connect_tcp(url: &BrokerUrl) -> Result<TcpStream, ConnectError> {
    let addresses = tokio::net::lookup_host((url.host(), url.port()))
        .await
        .map_err(|error| {
            ConnectError::new(
                ConnectReason::DnsFailed,
                format!("cannot resolve {}: {error}", url.host()),
            )
        })?;
    let mut last = None;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // Acknowledgements are small frames; waiting to fill a segment would only delay them.
                drop(stream.set_nodelay(true));
                return Ok(stream);
            }
            Err(error) => last = Some(error),
        }
    }
    Err(match last {
        None => ConnectError::new(ConnectReason::DnsFailed, format!("{} has no address", url.host())),
        Some(error) => {
            let reason = match error.kind() {
                io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => ConnectReason::ConnectionRefused,
                io::ErrorKind::TimedOut => ConnectReason::Timeout,
                _other => ConnectReason::HostUnreachable,
            };
            ConnectError::new(reason, format!("{}: {error}", server(url)))
        }
    })
}

async fn handshake(url: &BrokerUrl, stream: TcpStream, config: ClientConfig) -> Result<Socket, ConnectError> {
    let name = ServerName::try_from(url.host().to_owned()).map_err(|error| {
        ConnectError::new(
            ConnectReason::TlsFailed,
            format!("{} is no name for a certificate: {error}", url.host()),
        )
    })?;
    match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        Ok(stream) => Ok(Socket::Tls(Box::new(stream))),
        Err(error) => {
            let message = format!("TLS handshake with {} failed: {error}", server(url));
            Err(ConnectError::new(ConnectReason::TlsFailed, message))
        }
    }
}

fn client_config(tls: Option<&TlsFiles>, verification: Verification) -> Result<ClientConfig, ConnectError> {
    let invalid = |what: &str, error: &dyn std::fmt::Display| {
        ConnectError::new(
            ConnectReason::InvalidConfiguration,
            format!("cannot use the {what}: {error}"),
        )
    };
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid("TLS provider", &error))?;
    let builder = match verification {
        Verification::None => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AcceptAnyCertificate(provider))),
        Verification::Full => {
            let mut roots = RootCertStore::empty();
            if let Some(pem) = tls.and_then(|tls| tls.ca.as_deref()) {
                for certificate in certificates(pem).map_err(|error| invalid("broker's CA certificates", &error))? {
                    roots
                        .add(certificate)
                        .map_err(|error| invalid("broker's CA certificates", &error))?;
                }
                if roots.is_empty() {
                    return Err(invalid("broker's CA certificates", &"no PEM certificate in the file"));
                }
            } else {
                roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
            }
            builder.with_root_certificates(roots)
        }
    };
    let Some((chain, key)) = tls.and_then(|tls| Some((tls.certificate.as_deref()?, tls.key.as_deref()?))) else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(chain).map_err(|error| invalid("client certificate", &error))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| invalid("client key", &error))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| invalid("client certificate", &error))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, rustls::pki_types::pem::Error> {
    CertificateDer::pem_slice_iter(pem).collect()
}

/// `ssl_cert_reqs=CERT_NONE`: what the user asked for; signatures are still checked.
#[derive(Debug)]
struct AcceptAnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
