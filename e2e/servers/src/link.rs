//! A network link between two programs on this machine, which a test can cut, silence or slow.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Bytes that are passed on at once.
const CHUNK: usize = 16 * 1024;

/// What passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Everything.
    Open,
    /// So many bytes a second, each way and connection.
    Slow(u32),
    /// Nothing, and nobody is told: connections stay, as behind a network that drops packets.
    Silent,
    /// What is sent arrives, and no answer comes back: it is lost, and its connection ends when this does.
    Unanswered,
    /// Nothing: connections end, and new ones end at once.
    Cut,
}

/// A port whose connections go to another port; gone when dropped, with all connections.
#[derive(Debug)]
pub struct Link {
    port: u16,
    flow: watch::Sender<Flow>,
    acceptor: JoinHandle<()>,
}

impl Link {
    /// Opens a link to a port of this machine.
    pub async fn open(target: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let (flow, flows) = watch::channel(Flow::Open);
        let acceptor = tokio::spawn(accept(listener, target, flows));
        Ok(Self { port, flow, acceptor })
    }

    /// Returns the port to connect to.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Changes what passes, for the connections that are there as well.
    pub fn set(&self, flow: Flow) {
        self.flow.send_replace(flow);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.acceptor.abort();
        // Those who wait for the flow to change end with its sender.
        self.flow.send_replace(Flow::Cut);
    }
}

async fn accept(listener: TcpListener, target: u16, flows: watch::Receiver<Flow>) {
    while let Ok((near, _)) = listener.accept().await {
        if *flows.borrow() != Flow::Cut {
            tokio::spawn(connect(near, target, flows.clone()));
        }
    }
}

async fn connect(near: TcpStream, target: u16, flows: watch::Receiver<Flow>) {
    let Ok(far) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], target))).await else {
        return;
    };
    let delayed = near.set_nodelay(true).and_then(|()| far.set_nodelay(true));
    if delayed.is_err() {
        return;
    }
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let mut cut = flows.clone();
    let there = pump(near_in, far_out, flows.clone(), Way::There);
    let back = pump(far_in, near_out, flows, Way::Back);
    tokio::select! {
        _ = cut.wait_for(|flow| *flow == Flow::Cut) => {}
        ((), ()) = async { tokio::join!(there, back) } => {}
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    There,
    Back,
}

/// Passes bytes one way until the reader ends, the writer takes no more, or an answer was lost.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut flows: watch::Receiver<Flow>, way: Way) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        let Some(bytes) = buffer.get(..count) else { return };
        // What was read before the link fell silent must not pass either.
        let Ok(flow) = flows.wait_for(|flow| *flow != Flow::Silent).await.map(|flow| *flow) else {
            return;
        };
        if flow == Flow::Unanswered && way == Way::Back {
            drop(flows.wait_for(|flow| *flow != Flow::Unanswered).await);
            return;
        }
        if let Flow::Slow(rate) = flow {
            let pause = count as f64 / f64::from(rate.max(1));
            tokio::time::sleep(Duration::from_secs_f64(pause)).await;
        }
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    const MOMENT: Duration = Duration::from_millis(200);
    const PATIENCE: Duration = Duration::from_secs(20);

    /// Starts a server that sends back what it gets.
    async fn echo() -> Result<u16> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (mut from, mut to) = stream.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut from, &mut to).await });
            }
        });
        Ok(port)
    }

    async fn said(stream: &mut TcpStream, text: &[u8]) -> Result<Vec<u8>> {
        stream.write_all(text).await?;
        let mut back = vec![0; text.len()];
        stream.read_exact(&mut back).await?;
        Ok(back)
    }

    #[tokio::test]
    async fn passes_falls_silent_goes_on_and_is_cut() -> Result<()> {
        let link = Link::open(echo().await?).await?;
        let mut stream = TcpStream::connect(("127.0.0.1", link.port())).await?;
        assert_eq!(timeout(PATIENCE, said(&mut stream, b"open")).await??, b"open");
        link.set(Flow::Silent);
        assert!(timeout(MOMENT, said(&mut stream, b"silent")).await.is_err());
        link.set(Flow::Slow(1_000_000));
        let mut late = vec![0; 6];
        timeout(PATIENCE, stream.read_exact(&mut late)).await??;
        assert_eq!(late, b"silent", "a link that was silent has lost nothing");
        link.set(Flow::Unanswered);
        assert!(timeout(MOMENT, said(&mut stream, b"asked")).await.is_err());
        link.set(Flow::Open);
        let lost = timeout(PATIENCE, stream.read(&mut late)).await??;
        assert_eq!(lost, 0, "the answer is lost, and the connection with it");
        let mut stream = TcpStream::connect(("127.0.0.1", link.port())).await?;
        assert_eq!(timeout(PATIENCE, said(&mut stream, b"again")).await??, b"again");
        link.set(Flow::Cut);
        assert_eq!(timeout(PATIENCE, stream.read(&mut late)).await??, 0);
        let mut refused = TcpStream::connect(("127.0.0.1", link.port())).await?;
        let ended = timeout(PATIENCE, refused.read(&mut late)).await?;
        assert!(matches!(ended, Ok(0) | Err(_)));
        Ok(())
    }
}
