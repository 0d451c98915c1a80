//! How an action's numbers and names are written in JSON, and how the OpenAPI document says so. Must not know what they mean.

use utoipa::ToSchema;

/// 32 bytes.
#[derive(ToSchema)]
#[schema(value_type = String, pattern = "^0x[0-9a-fA-F]{64}$")]
#[allow(dead_code)] // Only its schema is used.
pub(super) struct Hash(String);

/// An account of the ledger.
#[derive(ToSchema)]
#[schema(value_type = String, pattern = "^0x[0-9a-fA-F]{40}$")]
#[allow(dead_code)]
pub(super) struct Account(String);

/// A number of 64 bits: as text when it is larger than JavaScript can hold exactly.
pub(super) fn wide_schema() -> utoipa::openapi::Schema {
    use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Type};
    let exact = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).maximum(Some(wide::EXACT_MAX));
    let text = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^([0-9]{1,19}|18446744073709551615)$"));
    OneOfBuilder::new().item(exact).item(text).into()
}

/// Numbers that JavaScript would round are written as text; both are read.
pub(super) mod wide {
    use serde::{Deserializer, Serializer};

    use super::whole::Whole;

    /// 2^53.
    pub(crate) const EXACT_MAX: u64 = 9_007_199_254_740_992;

    pub(crate) fn serialize<S: Serializer>(number: &u64, to: S) -> Result<S::Ok, S::Error> {
        if *number <= EXACT_MAX { to.serialize_u64(*number) } else { to.serialize_str(&number.to_string()) }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        from.deserialize_any(Whole { text: true })
    }
}

/// Whole numbers as JSON has them: `3.0` is one too (JSON Schema 6.1.1).
pub(crate) mod whole {
    use std::fmt;

    use serde::de::{Deserialize, Deserializer, Error, Visitor};

    use super::wide::EXACT_MAX;

    /// For fields of any width.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>, T: TryFrom<u64>>(from: D) -> Result<T, D::Error> {
        Number::deserialize(from).map(|Number(number)| number)
    }

    /// For fields that may be missing or null.
    pub(crate) fn optional<'de, D: Deserializer<'de>, T: TryFrom<u64>>(from: D) -> Result<Option<T>, D::Error> {
        Ok(Option::<Number<T>>::deserialize(from)?.map(|Number(number)| number))
    }

    struct Number<T>(T);

    impl<'de, T: TryFrom<u64>> Deserialize<'de> for Number<T> {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            let number = from.deserialize_any(Whole { text: false })?;
            let narrow = T::try_from(number).map_err(|_| D::Error::custom("the number is too large"));
            narrow.map(Self)
        }
    }

    pub(super) struct Whole {
        /// Whether decimal digits as text are one.
        pub(super) text: bool,
    }

    impl Visitor<'_> for Whole {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a whole number")
        }

        fn visit_u64<E: Error>(self, number: u64) -> Result<u64, E> {
            Ok(number)
        }

        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // Checked before.
        fn visit_f64<E: Error>(self, number: f64) -> Result<u64, E> {
            let is_whole = number.fract() == 0.0 && (0.0..=EXACT_MAX as f64).contains(&number);
            if is_whole { Ok(number as u64) } else { Err(E::custom("expected a whole number")) }
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
            if !self.text || text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
                return Err(E::custom("expected a whole number"));
            }
            text.parse().map_err(E::custom)
        }
    }
}
