//! A stream of events as Celery workers send it, generated: tasks interleaved, in messages of one to six events.

/// A message body and the routing key it travels with.
pub(crate) struct Body {
    pub(crate) routing_key: &'static str,
    pub(crate) hostname: String,
    pub(crate) json: String,
}

/// One event of the stream, for comparison and for the plain COPY.
pub(crate) struct Sent {
    pub(crate) task: String,
    pub(crate) kind: &'static str,
    pub(crate) timestamp: f64,
    pub(crate) worker: usize,
    pub(crate) json: String,
}

/// How the tasks of a stream live.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// Tasks that begin in the stream.
    pub(crate) tasks: usize,
    /// Tasks that begin each second of the stream's own time.
    pub(crate) tasks_per_second: f64,
    /// Half of the tasks take at least a second; else all end within milliseconds.
    pub(crate) half_long: bool,
    /// One task in so many is retried once; 0: none.
    pub(crate) retried_in: usize,
    /// One task in so many does not end within the stream, and as many that began before it do; 0: none.
    pub(crate) older_in: usize,
    /// Tells the ids of one stream from those of another.
    pub(crate) salt: u64,
}

impl Shape {
    /// Tasks that begin and end within moments.
    pub(crate) const fn short(tasks: usize, salt: u64) -> Self {
        Self {
            tasks,
            tasks_per_second: 10_000.0,
            half_long: false,
            retried_in: 0,
            older_in: 0,
            salt,
        }
    }

    /// Tasks interleaved, half of them a second or longer from received to final, one in a hundred ten minutes or longer,
    /// one in twenty retried.
    pub(crate) const fn realistic(tasks: usize, salt: u64) -> Self {
        Self {
            tasks,
            tasks_per_second: 10_000.0,
            half_long: true,
            retried_in: 20,
            older_in: 100,
            salt,
        }
    }
}

impl Shape {
    fn older(self) -> usize {
        self.tasks.checked_div(self.older_in).unwrap_or(0)
    }
}

const WORKERS: usize = 20;
const NAMES: [&str; 6] = [
    "shop.orders.confirm",
    "shop.orders.ship",
    "billing.charge",
    "billing.refund",
    "mail.send",
    "reports.daily",
];

/// A generator that gives the same numbers on every machine.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    fn fraction(&mut self) -> f64 {
        (self.roll() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Returns the id of a task.
pub(crate) fn task_id(salt: u64, number: usize) -> String {
    let mut dice = Dice::new(salt.wrapping_mul(1_000_003).wrapping_add(number as u64).wrapping_add(1));
    dice.roll();
    let (high, low) = (dice.roll(), dice.roll());
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        low >> 52,
        low & 0xffff_ffff_ffff
    )
}

/// Returns the events that the older tasks of a stream have before it begins.
pub(crate) fn prelude(shape: Shape, start: f64) -> Vec<Sent> {
    let mut events = Vec::new();
    for number in 0..shape.older() {
        let (task, worker) = (task_id(shape.salt ^ 0xffff, number), number % WORKERS);
        let at = start - 700.0 + number as f64 * 1e-4;
        events.push(received(&task, number, worker, at, 0));
        events.push(event("task-started", &task, worker, at + 0.001, ""));
    }
    in_order(events)
}

/// Returns the events of a stream in the order of their time.
pub(crate) fn stream(shape: Shape, start: f64) -> Vec<Sent> {
    let mut dice = Dice::new(shape.salt);
    let mut events = Vec::with_capacity(shape.tasks * 4);
    for number in 0..shape.tasks {
        let (task, worker) = (task_id(shape.salt, number), number % WORKERS);
        let mut at = start + number as f64 / shape.tasks_per_second;
        let long = shape.half_long && dice.below(2) == 0;
        let runtime = if long {
            1.0 + dice.fraction() * 2.0
        } else {
            0.002 + dice.fraction() * 0.01
        };
        events.push(sent(&task, number, worker, at, 0));
        events.push(received(&task, number, worker, at + 0.002, 0));
        events.push(event("task-started", &task, worker, at + 0.004, ""));
        if shape.retried_in > 0 && number % shape.retried_in == 7 {
            events.push(sent(&task, number, worker, at + 0.005, 1));
            events.push(received(&task, number, worker, at + 0.007, 1));
            let fields = r#","exception":"TimeoutError('later')","traceback":"Traceback (most recent call last):\n  File \"tasks.py\", line 7\nTimeoutError: later\n""#;
            events.push(event("task-retried", &task, worker, at + 0.008, fields));
            at += 0.5;
            events.push(event("task-started", &task, worker, at, ""));
        }
        if shape.older_in > 0 && number % shape.older_in == 3 {
            continue;
        }
        events.push(ending(&task, number, worker, at + 0.004 + runtime, runtime));
    }
    if shape.older_in > 0 {
        for number in 0..shape.older() {
            let (task, worker) = (task_id(shape.salt ^ 0xffff, number), number % WORKERS);
            let at = start + (number * shape.older_in) as f64 / shape.tasks_per_second;
            events.push(ending(&task, number, worker, at, 700.0));
        }
    }
    in_order(events)
}

fn in_order(mut events: Vec<Sent>) -> Vec<Sent> {
    events.sort_by(|a, b| a.timestamp.total_cmp(&b.timestamp));
    // Each worker has a clock of its own that counts its events.
    let mut clocks = [0_u64; WORKERS];
    for event in &mut events {
        clocks[event.worker] += 1;
        let clock = format!(r#""clock": {}, "#, clocks[event.worker]);
        event.json = event.json.replacen(r#""clock": 0, "#, &clock, 1);
    }
    events
}

fn sent(task: &str, number: usize, worker: usize, at: f64, retries: u32) -> Sent {
    let name = NAMES[number % NAMES.len()];
    let fields = format!(
        r#", "name": "{name}", "args": "({number}, 'customer-{}')", "kwargs": "{{'priority': {}}}", "root_id": "{task}", "parent_id": null, "retries": {retries}, "eta": null, "expires": null, "queue": "celery", "exchange": "", "routing_key": "celery""#,
        number % 977,
        number % 7
    );
    event("task-sent", task, worker, at, &fields)
}

fn received(task: &str, number: usize, worker: usize, at: f64, retries: u32) -> Sent {
    let name = NAMES[number % NAMES.len()];
    let fields = format!(
        r#", "name": "{name}", "args": "({number}, 'customer-{}')", "kwargs": "{{'priority': {}}}", "root_id": "{task}", "parent_id": null, "retries": {retries}, "eta": null, "expires": null"#,
        number % 977,
        number % 7
    );
    event("task-received", task, worker, at, &fields)
}

fn ending(task: &str, number: usize, worker: usize, at: f64, runtime: f64) -> Sent {
    if number % 50 == 11 {
        let fields = r#", "exception": "ValueError('no such order')", "traceback": "Traceback (most recent call last):\n  File \"/app/shop/tasks.py\", line 41, in confirm\n    raise ValueError('no such order')\nValueError: no such order\n""#;
        return event("task-failed", task, worker, at, fields);
    }
    event(
        "task-succeeded",
        task,
        worker,
        at,
        &format!(r#", "result": "{{'order': {number}}}", "runtime": {runtime}"#),
    )
}

fn event(kind: &'static str, task: &str, worker: usize, timestamp: f64, fields: &str) -> Sent {
    let (hostname, pid) = (hostname(worker), 1000 + worker);
    let json = format!(
        r#"{{"hostname": "{hostname}", "utcoffset": 0.0, "pid": {pid}, "clock": 0, "uuid": "{task}"{fields}, "timestamp": {timestamp:.6}, "type": "{kind}"}}"#
    );
    Sent {
        task: task.to_owned(),
        kind,
        timestamp,
        worker,
        json,
    }
}

fn hostname(worker: usize) -> String {
    format!("celery@worker-{worker:02}")
}

/// Puts events into messages as a prefork worker does: `task-sent` alone, the rest in lists of one to six of one worker.
pub(crate) fn messages(events: &[Sent]) -> Vec<Body> {
    let mut dice = Dice::new(events.len() as u64 + 17);
    let mut open: Vec<(Vec<&str>, u64)> = (0..WORKERS).map(|_| (Vec::new(), 1)).collect();
    let mut bodies = Vec::new();
    for event in events {
        if event.kind == "task-sent" {
            bodies.push(Body {
                routing_key: "task.sent",
                hostname: hostname(event.worker),
                json: event.json.clone(),
            });
            continue;
        }
        let (list, size) = &mut open[event.worker];
        list.push(&event.json);
        if list.len() as u64 >= *size {
            bodies.push(list_of(event.worker, list));
            list.clear();
            *size = 1 + dice.below(6);
        }
    }
    for (worker, (list, _)) in open.iter().enumerate() {
        if !list.is_empty() {
            bodies.push(list_of(worker, list));
        }
    }
    bodies
}

fn list_of(worker: usize, list: &[&str]) -> Body {
    Body {
        routing_key: "task.multi",
        hostname: hostname(worker),
        json: format!("[{}]", list.join(", ")),
    }
}
