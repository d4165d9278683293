//! Packs events into messages as a prefork worker does: `task-sent` alone, the rest in lists of one to six of one worker.

use crate::dice::Dice;
use crate::event::{Event, client, hostname};

/// A message.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// `task.sent` or `task.multi`.
    pub routing_key: &'static str,
    /// Node name of the sender.
    pub hostname: &'a str,
    /// The body, JSON.
    pub body: &'a str,
    /// How many events are in it.
    pub events: usize,
}

/// Lists that are being filled.
#[derive(Debug)]
pub struct Messages {
    workers: Vec<Worker>,
    dice: Dice,
}

#[derive(Debug)]
struct Worker {
    hostname: String,
    client: String,
    list: String,
    events: usize,
    size: usize,
}

impl Messages {
    /// Returns empty lists for so many workers.
    pub fn new(workers: usize) -> Self {
        let worker = |number| Worker {
            hostname: hostname(number),
            client: client(number),
            list: String::new(),
            events: 0,
            size: 1,
        };
        Self {
            workers: (0..workers).map(worker).collect(),
            dice: Dice::new(17),
        }
    }

    /// Takes an event in, and gives the message that is full by it.
    pub fn push(&mut self, event: &Event<'_>, mut send: impl FnMut(&Message<'_>)) {
        let worker = &mut self.workers[event.worker];
        if event.kind == "task-sent" {
            return send(&Message {
                routing_key: "task.sent",
                hostname: &worker.client,
                body: event.json,
                events: 1,
            });
        }
        worker.list.push_str(if worker.events == 0 { "[" } else { ", " });
        worker.list.push_str(event.json);
        worker.events += 1;
        if worker.events >= worker.size {
            worker.send(&mut send);
            worker.size = 1 + self.dice.below(6) as usize;
        }
    }

    /// Gives what waits, as a worker does when its event loop has nothing else to do.
    pub fn flush(&mut self, mut send: impl FnMut(&Message<'_>)) {
        for worker in self.workers.iter_mut().filter(|worker| worker.events > 0) {
            worker.send(&mut send);
        }
    }
}

impl Worker {
    fn send(&mut self, send: &mut impl FnMut(&Message<'_>)) {
        self.list.push(']');
        send(&Message {
            routing_key: "task.multi",
            hostname: &self.hostname,
            body: &self.list,
            events: self.events,
        });
        self.list.clear();
        self.events = 0;
    }
}
