//! Facts as bytes for the store.
//!
//! Version, then facts, then texts. Integers are LEB128, signed ones in zigzag; times are differences; a text that was
//! written before is a reference. A later version must go on reading this one: the numbers of [`Step`] and [`Field`]
//! never change their meaning.

use std::sync::Arc;

use super::{Bounds, Fact, FactsError, Field, Flags, Key, Step, TaskFacts, Texts};
use crate::event::PayloadFields;

const VERSION: u8 = 1;

/// Which optional parts of a fact follow.
const RETRIES: u8 = 1;
const ETA: u8 = 2;
const EXPIRES: u8 = 4;
const FLAGS: u8 = 8;
const RUNTIME: u8 = 16;

pub(super) fn encode(facts: &TaskFacts, out: &mut Vec<u8>) {
    let mut writer = Writer {
        out,
        strings: Vec::with_capacity(16),
        at: 0,
    };
    writer.out.push(VERSION);
    writer.unsigned(facts.facts.len() as u64);
    for fact in &facts.facts {
        writer.fact(fact);
    }
    writer.unsigned(facts.texts.len() as u64);
    for texts in &facts.texts {
        writer.texts(texts);
    }
}

pub(super) fn decode(bytes: &[u8]) -> Result<TaskFacts, FactsError> {
    let mut reader = Reader {
        bytes,
        pos: 0,
        strings: Vec::with_capacity(16),
        at: 0,
    };
    match reader.byte()? {
        VERSION => {}
        other => return Err(FactsError::Version(other)),
    }
    let mut facts = TaskFacts::default();
    for _ in 0..reader.unsigned()? {
        facts.keep_fact(reader.fact()?);
    }
    for _ in 0..reader.unsigned()? {
        facts.keep_texts(reader.texts()?);
    }
    if reader.pos < bytes.len() {
        Err(reader.damaged())
    } else {
        Ok(facts)
    }
}

struct Writer<'f, 'o> {
    out: &'o mut Vec<u8>,
    strings: Vec<&'f str>,
    at: i64,
}

impl<'f> Writer<'f, '_> {
    fn fact(&mut self, fact: &'f Fact) {
        self.key(&fact.key);
        let bit = |part: bool, bit: u8| if part { bit } else { 0 };
        self.out.push(
            bit(fact.retries.is_some(), RETRIES)
                | bit(fact.eta().is_some(), ETA)
                | bit(fact.expires().is_some(), EXPIRES)
                | bit(fact.flags != Flags::default(), FLAGS)
                | bit(fact.runtime.is_some(), RUNTIME),
        );
        if let Some(retries) = fact.retries {
            self.unsigned(retries.into());
        }
        for time in [fact.eta(), fact.expires()].into_iter().flatten() {
            self.signed(time.wrapping_sub(self.at));
        }
        if fact.flags != Flags::default() {
            self.out.push(fact.flags.0);
        }
        if let Some(runtime) = fact.runtime {
            self.out.extend_from_slice(&runtime.to_le_bytes());
        }
    }

    fn texts(&mut self, texts: &'f Texts) {
        self.key(&texts.key);
        self.out.push(texts.cut.0);
        self.out.push(u8::from(texts.percent.is_some()));
        if let Some(percent) = texts.percent {
            self.out.extend_from_slice(&percent.to_le_bytes());
        }
        self.unsigned(texts.fields.len() as u64);
        for (field, text) in &texts.fields {
            self.out.push(*field as u8);
            self.string(text);
        }
    }

    fn key(&mut self, key: &'f Key) {
        self.out.push(key.step as u8);
        self.signed(key.at.wrapping_sub(self.at));
        self.at = key.at;
        self.signed(key.clock);
        self.string(&key.host);
        self.signed(key.pid);
        if key.step == Step::Custom {
            self.string(key.custom.as_deref().unwrap_or_default());
        }
    }

    /// A reference to a text written before, or 0 and the text.
    fn string(&mut self, text: &'f str) {
        if let Some(index) = self.strings.iter().position(|known| *known == text) {
            return self.unsigned(index as u64 + 1);
        }
        self.strings.push(text);
        self.unsigned(0);
        self.unsigned(text.len() as u64);
        self.out.extend_from_slice(text.as_bytes());
    }

    fn signed(&mut self, value: i64) {
        self.unsigned(((value << 1) ^ (value >> 63)) as u64);
    }

    fn unsigned(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.out.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.out.push(value as u8);
    }
}

struct Reader<'b> {
    bytes: &'b [u8],
    pos: usize,
    strings: Vec<Arc<str>>,
    at: i64,
}

impl Reader<'_> {
    fn fact(&mut self) -> Result<Fact, FactsError> {
        let key = self.key()?;
        let parts = self.byte()?;
        let retries = if parts & RETRIES == 0 {
            None
        } else {
            Some(self.unsigned()?)
        };
        let retries = retries.map(u32::try_from).transpose().or(Err(self.damaged()))?;
        let eta = if parts & ETA == 0 {
            None
        } else {
            Some(self.signed()?.wrapping_add(self.at))
        };
        let expires = if parts & EXPIRES == 0 {
            None
        } else {
            Some(self.signed()?.wrapping_add(self.at))
        };
        let flags = Flags(if parts & FLAGS == 0 { 0 } else { self.byte()? });
        let runtime = if parts & RUNTIME == 0 { None } else { Some(self.bits()?) };
        Ok(Fact {
            key,
            retries,
            bounds: Bounds::new(eta, expires),
            flags,
            runtime,
        })
    }

    fn texts(&mut self) -> Result<Texts, FactsError> {
        let key = self.key()?;
        let cut = PayloadFields(self.byte()?);
        let percent = if self.byte()? == 0 { None } else { Some(self.bits()?) };
        let mut fields = Vec::new();
        for _ in 0..self.unsigned()? {
            let field = self.byte()?;
            let field = field_of(field).ok_or_else(|| self.damaged())?;
            fields.push((field, self.string()?));
        }
        Ok(Texts {
            key,
            fields,
            percent,
            cut,
        })
    }

    fn key(&mut self) -> Result<Key, FactsError> {
        let step = self.byte()?;
        let step = step_of(step).ok_or_else(|| self.damaged())?;
        let at = self.signed()?.wrapping_add(self.at);
        self.at = at;
        let clock = self.signed()?;
        let host = self.string()?;
        let pid = self.signed()?;
        let custom = if step == Step::Custom {
            Some(self.string()?)
        } else {
            None
        };
        Ok(Key {
            at,
            clock,
            step,
            host,
            pid,
            custom,
        })
    }

    fn string(&mut self) -> Result<Arc<str>, FactsError> {
        let reference = self.unsigned()? as usize;
        if let Some(index) = reference.checked_sub(1) {
            return self.strings.get(index).cloned().ok_or_else(|| self.damaged());
        }
        let len = self.unsigned()? as usize;
        let end = self.pos.checked_add(len).ok_or_else(|| self.damaged())?;
        let bytes = self.bytes.get(self.pos..end).ok_or_else(|| self.damaged())?;
        let text = std::str::from_utf8(bytes).or(Err(self.damaged()))?;
        let text: Arc<str> = text.into();
        self.pos = end;
        self.strings.push(Arc::clone(&text));
        Ok(text)
    }

    fn bits(&mut self) -> Result<u64, FactsError> {
        let mut value = [0; 8];
        for byte in &mut value {
            *byte = self.byte()?;
        }
        Ok(u64::from_le_bytes(value))
    }

    fn signed(&mut self) -> Result<i64, FactsError> {
        let value = self.unsigned()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn unsigned(&mut self) -> Result<u64, FactsError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.damaged())
    }

    fn byte(&mut self) -> Result<u8, FactsError> {
        let byte = self.bytes.get(self.pos).copied().ok_or_else(|| self.damaged())?;
        self.pos += 1;
        Ok(byte)
    }

    const fn damaged(&self) -> FactsError {
        FactsError::Damaged(self.pos)
    }
}

fn step_of(number: u8) -> Option<Step> {
    const STEPS: [Step; 18] = [
        Step::Sent,
        Step::Received,
        Step::Started,
        Step::Custom,
        Step::Retried,
        Step::Rejected,
        Step::Cancelled,
        Step::Revoked,
        Step::Failed,
        Step::Succeeded,
        Step::Progress,
        Step::Steps,
        Step::Lost,
        Step::Back,
        Step::FoundStarted,
        Step::FoundSucceeded,
        Step::FoundFailed,
        Step::FoundRevoked,
    ];
    STEPS.into_iter().find(|step| *step as u8 == number)
}

fn field_of(number: u8) -> Option<Field> {
    const FIELDS: [Field; 17] = [
        Field::Name,
        Field::Args,
        Field::Kwargs,
        Field::RootId,
        Field::ParentId,
        Field::Queue,
        Field::Exchange,
        Field::RoutingKey,
        Field::Result,
        Field::Exception,
        Field::ExceptionClass,
        Field::Traceback,
        Field::Signum,
        Field::StepKey,
        Field::Message,
        Field::Meta,
        Field::Steps,
    ];
    FIELDS.into_iter().find(|field| *field as u8 == number)
}
