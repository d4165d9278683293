//! yaml bodies. The reader builds a tree, so both the body and the tree are bounded: aliases can make a small body large.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error as _, MapAccess, SeqAccess, VariantAccess, Visitor};

use super::Limits;
use super::scalar::Scalar;
use crate::event::{Repair, Repairs, write_string};
use crate::text::without_nul;

/// A value of a yaml document.
#[derive(Debug)]
pub(super) enum Node {
    Scalar(Scalar<'static>),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

/// Reads a document into a tree of at most `limits.max_decompressed_bytes`.
pub(super) fn read(text: &str, limits: &Limits) -> Result<Node, String> {
    let budget = Cell::new(limits.max_decompressed_bytes);
    let seed = Seed {
        budget: &budget,
        depth: limits.max_depth,
    };
    seed.deserialize(serde_yaml::Deserializer::from_str(text))
        .map_err(|error| error.to_string())
}

impl Node {
    /// Returns the node as a field's value.
    pub(super) fn into_scalar(self, repairs: &mut Repairs) -> Scalar<'static> {
        match self {
            Self::Scalar(Scalar::Text(text)) => {
                let (text, had_nul) = without_nul(text);
                if had_nul {
                    repairs.insert(Repair::Nul);
                }
                Scalar::Text(text)
            }
            Self::Scalar(scalar) => scalar,
            nested @ (Self::List(_) | Self::Map(_)) => {
                let mut out = String::new();
                nested.write_json(repairs, &mut out);
                Scalar::Json(out.into())
            }
        }
    }

    /// The depth is bounded by the reader.
    fn write_json(self, repairs: &mut Repairs, out: &mut String) {
        match self {
            scalar @ Self::Scalar(_) => {
                let scalar = scalar.into_scalar(repairs);
                scalar.write_json(None, repairs, out);
            }
            Self::List(nodes) => {
                out.push('[');
                for (index, node) in nodes.into_iter().enumerate() {
                    out.push_str(if index == 0 { "" } else { "," });
                    node.write_json(repairs, out);
                }
                out.push(']');
            }
            Self::Map(entries) => {
                out.push('{');
                for (index, (key, node)) in entries.into_iter().enumerate() {
                    out.push_str(if index == 0 { "" } else { "," });
                    write_string(&key, out);
                    out.push(':');
                    node.write_json(repairs, out);
                }
                out.push('}');
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Seed<'b> {
    budget: &'b Cell<usize>,
    depth: usize,
}

impl Seed<'_> {
    fn pay<E: serde::de::Error>(self, bytes: usize) -> Result<(), E> {
        let left = self
            .budget
            .get()
            .checked_sub(bytes.saturating_add(size_of::<(String, Node)>()));
        self.budget
            .set(left.ok_or_else(|| E::custom("too large when its aliases are followed"))?);
        Ok(())
    }

    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        let depth = self.depth.checked_sub(1).ok_or_else(|| E::custom("nested too deep"))?;
        Ok(Self { depth, ..self })
    }

    fn scalar<E: serde::de::Error>(self, scalar: Scalar<'static>) -> Result<Node, E> {
        self.pay(0)?;
        Ok(Node::Scalar(scalar))
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a yaml value")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Node, E> {
        self.scalar(Scalar::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Node, E> {
        self.scalar(Scalar::Bool(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Node, E> {
        self.scalar(Scalar::Int(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Node, E> {
        self.scalar(i64::try_from(value).map_or_else(|_| Scalar::Huge(value.to_string().into()), Scalar::Int))
    }

    fn visit_i128<E: serde::de::Error>(self, value: i128) -> Result<Node, E> {
        self.scalar(Scalar::Huge(value.to_string().into()))
    }

    fn visit_u128<E: serde::de::Error>(self, value: u128) -> Result<Node, E> {
        self.scalar(Scalar::Huge(value.to_string().into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Node, E> {
        self.scalar(if value.is_finite() {
            Scalar::Float(value)
        } else {
            Scalar::not_finite(value)
        })
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Node, E> {
        self.pay(value.len())?;
        Ok(Node::Scalar(Scalar::Text(value.to_owned().into())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let inner = self.deeper()?;
        let mut nodes = Vec::new();
        while let Some(node) = seq.next_element_seed(inner)? {
            nodes.push(node);
        }
        Ok(Node::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let inner = self.deeper()?;
        let mut entries = Vec::new();
        while let Some(key) = map.next_key_seed(inner)? {
            let key = key
                .into_scalar(&mut Repairs::default())
                .into_text(&mut Repairs::default());
            entries.push((
                key.map_or_else(|| "null".to_owned(), Into::into),
                map.next_value_seed(inner)?,
            ));
        }
        Ok(Node::Map(entries))
    }

    /// A tagged value: the tag is dropped.
    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<Node, A::Error> {
        let (_, content) = data.variant_seed(self.deeper()?)?;
        content.newtype_variant_seed(self).map_err(A::Error::custom)
    }
}
