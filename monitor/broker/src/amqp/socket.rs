//! The socket under lapin: it counts what is read, pauses while too much is held, and overhears the server's greeting.
//!
//! AMQP's prefetch counts messages, not bytes, and lapin's own queue of deliveries has no bound; a sudden run of large
//! messages would be in memory before a smaller prefetch could take effect. Not reading the socket is the one brake that
//! works at once. The greeting holds product and version of the server, which lapin does not pass on.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use futures::Stream;
use futures::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio_util::compat::Compat;

use crate::handover::{Ledger, lock};
use crate::net::Socket;

/// Bytes of the greeting that are kept; `connection.start` of RabbitMQ has about 600.
const GREETING: usize = 4096;

/// The first bytes that the server sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Greeting(Arc<Mutex<Vec<u8>>>);

impl Greeting {
    fn overhear(&self, bytes: &[u8]) {
        let mut kept = lock(&self.0);
        let room = GREETING.saturating_sub(kept.len());
        kept.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
    }

    /// Returns a text field of the server's properties.
    pub(crate) fn property(&self, name: &str) -> Option<String> {
        let kept = lock(&self.0);
        // A field is: length of the name, the name, 'S', length of the value as u32, the value.
        let mut key = vec![u8::try_from(name.len()).ok()?];
        key.extend_from_slice(name.as_bytes());
        key.push(b'S');
        let start = kept.windows(key.len()).position(|window| window == key)? + key.len();
        let length: [u8; 4] = kept.get(start..start + 4)?.try_into().ok()?;
        let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
        let value = kept.get(start + 4..(start + 4).checked_add(length)?)?;
        String::from_utf8(value.to_vec())
            .ok()
            .filter(|text| text.len() <= 100 && !text.contains(char::is_control))
    }
}

/// See the module.
pub(crate) struct MeteredSocket {
    inner: Compat<Socket>,
    ledger: Option<Arc<Ledger>>,
    greeting: Option<Greeting>,
    overheard: usize,
}

impl MeteredSocket {
    pub(crate) fn new(inner: Compat<Socket>, ledger: Option<Arc<Ledger>>, greeting: Greeting) -> Self {
        Self {
            inner,
            ledger,
            greeting: Some(greeting),
            overheard: 0,
        }
    }
}

impl AsyncRead for MeteredSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if let Some(ledger) = &self.ledger
            && !ledger.may_read(cx.waker())
        {
            return Poll::Pending;
        }
        let outcome = Pin::new(&mut self.inner).poll_read(cx, buf);
        if let Poll::Ready(Ok(count)) = outcome {
            if let Some(ledger) = &self.ledger {
                ledger.read(count);
            }
            if let Some(greeting) = &self.greeting {
                greeting.overhear(buf.get(..count).unwrap_or_default());
                self.overheard += count;
                if self.overheard >= GREETING {
                    self.greeting = None;
                }
            }
        }
        outcome
    }
}

impl AsyncWrite for MeteredSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

/// Tokio's reactor with our socket type; lapin is given connected sockets and never connects by itself.
#[derive(Clone, Debug)]
pub(crate) struct SocketReactor(pub(crate) Handle);

impl Reactor for SocketReactor {
    type TcpStream = MeteredSocket;
    type Sleep = tokio::time::Sleep;

    fn register<H: Read + Write + AsFd + Send + 'static>(
        &self,
        _socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<MeteredSocket, _>(io::Error::from(io::ErrorKind::Unsupported))
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        let _context = self.0.enter();
        tokio::time::sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        let _context = self.0.enter();
        let interval = tokio::time::interval(duration);
        futures::stream::unfold(interval, |mut interval| async move {
            let at = interval.tick().await.into_std();
            Some((at, interval))
        })
    }

    fn tcp_connect_addr(
        &self,
        _address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        std::future::ready(Err(io::Error::from(io::ErrorKind::Unsupported)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn product_and_version_are_read_from_the_greeting() {
        let greeting = Greeting::default();
        greeting.overhear(b"\x01\x00\x00\x00\x00\x01\xf8\x00\x0a\x00\x0a\x00\x09\x07productS\x00\x00\x00\x08RabbitMQ");
        greeting.overhear(b"\x07versionS\x00\x00\x00\x063.10.8\x04xxxx");
        assert_eq!(greeting.property("product").as_deref(), Some("RabbitMQ"));
        assert_eq!(greeting.property("version").as_deref(), Some("3.10.8"));
        assert_eq!(greeting.property("platform"), None);
    }

    #[test]
    fn a_greeting_that_lies_about_its_lengths_is_ignored() {
        let greeting = Greeting::default();
        greeting.overhear(b"\x07versionS\xff\xff\xff\xff3.10");
        assert_eq!(greeting.property("version"), None);
    }
}
