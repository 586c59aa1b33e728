//! Kind `embedding`: texts in, a vector for each out; or a query and documents in, a score for each document out.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FinishReason, block};

/// What is to be embedded or ranked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct EmbeddingRequest {
    /// The texts.
    pub input: EmbeddingInput,
    /// Values that each vector is to have, at least 1: the model cuts its vectors to so many and makes them as long as they were,
    /// or refuses, with `dimensions` as the field to blame. Absent: as many as the model makes.
    #[serde(default)]
    pub dimensions: Option<u32>,
    /// The bytes that the request speaks of by number.
    #[serde(skip)]
    pub blocks: Vec<Vec<u8>>,
}

builders! {
    EmbeddingRequest:
    dimensions(some u32), blocks(Vec<Vec<u8>>),
}

/// The texts of a request, in one of their forms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EmbeddingInput {
    /// Texts, each to be embedded.
    #[non_exhaustive]
    Texts {
        /// In order, at least one; none is empty.
        texts: Vec<String>,
    },
    /// The same as token ids of the model's own vocabulary, with what it puts around a text.
    #[non_exhaustive]
    Tokens {
        /// In order, at least one; none is empty.
        tokens: Vec<Vec<u32>>,
    },
    /// Documents, each to be scored by how well it answers a query.
    #[non_exhaustive]
    Rank {
        /// What is looked for.
        query: String,
        /// In order, at least one; one may be empty.
        documents: Vec<String>,
    },
}

impl EmbeddingInput {
    /// Texts to embed.
    pub fn texts<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Self {
        Self::Texts { texts: texts.into_iter().map(Into::into).collect() }
    }

    /// Texts to embed, as token ids.
    pub fn tokens(tokens: Vec<Vec<u32>>) -> Self {
        Self::Tokens { tokens }
    }

    /// Documents to score for a query.
    pub fn rank<T: Into<String>>(query: impl Into<String>, documents: impl IntoIterator<Item = T>) -> Self {
        Self::Rank { query: query.into(), documents: documents.into_iter().map(Into::into).collect() }
    }

    /// How many vectors, or scores, its answer has.
    pub fn count(&self) -> usize {
        match self {
            Self::Texts { texts } => texts.len(),
            Self::Tokens { tokens } => tokens.len(),
            Self::Rank { documents, .. } => documents.len(),
        }
    }

    /// What its answer is made of.
    pub fn form(&self) -> EmbeddingForm {
        match self {
            Self::Texts { .. } | Self::Tokens { .. } => EmbeddingForm::Vector,
            Self::Rank { .. } => EmbeddingForm::Score,
        }
    }
}

impl EmbeddingRequest {
    /// A request of this input, with everything else as clients have it that say nothing of it.
    pub fn new(input: EmbeddingInput) -> Self {
        Self { input, dimensions: None, blocks: Vec::new() }
    }

    /// A request for the vectors of these texts.
    pub fn texts<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Self {
        Self::new(EmbeddingInput::texts(texts))
    }

    /// A request for the scores of these documents.
    pub fn rank<T: Into<String>>(query: impl Into<String>, documents: impl IntoIterator<Item = T>) -> Self {
        Self::new(EmbeddingInput::rank(query, documents))
    }
}

/// What an answer is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EmbeddingForm {
    /// A vector for each text.
    Vector,
    /// A score for each document; the higher, the better it answers.
    Score,
}

/// The JSON header of a pushed block. After it come its values, little-endian `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EmbeddingHeader {
    /// What the values are.
    pub form: EmbeddingForm,
    /// The place of the text in the request, from 0; of a block of scores, that of the first document. Blocks come in order.
    pub index: u32,
}

impl EmbeddingHeader {
    /// Of a block at this place.
    pub fn new(form: EmbeddingForm, index: u32) -> Self {
        Self { form, index }
    }
}

/// One vector, or some scores, as they cross: `u32` little-endian header length, JSON header, little-endian `f32`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct EmbeddingBlock {
    /// Of which texts.
    pub header: EmbeddingHeader,
    /// All of one vector, or a score for each document from the header's on.
    pub values: Vec<f32>,
}

impl EmbeddingBlock {
    /// Bytes of a value.
    const VALUE_BYTES: usize = 4;

    /// The payload of an event of kind [`BYTES`](crate::abi::event_kind::BYTES).
    ///
    /// # Errors
    /// If the header cannot be written as JSON, which no header should cause.
    pub fn encode(header: &EmbeddingHeader, values: &[f32]) -> crate::Result<Vec<u8>> {
        let mut payload = block::start(header, values.len() * Self::VALUE_BYTES)?;
        payload.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        Ok(payload)
    }

    /// Undoes [`encode`](Self::encode).
    ///
    /// # Errors
    /// If the payload is cut short, has no values, or its header is not one of an embedding.
    pub fn decode(payload: &[u8]) -> crate::Result<Self> {
        let damaged = || crate::Error::internal("a block of an embedding is damaged");
        let (header, bytes): (EmbeddingHeader, _) = block::split(payload).ok_or_else(damaged)?;
        let (values, rest) = bytes.as_chunks::<{ Self::VALUE_BYTES }>();
        if values.is_empty() || !rest.is_empty() {
            return Err(damaged());
        }
        Ok(Self { header, values: values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect() })
    }
}

/// The result of one embedding request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EmbeddingFinish {
    /// [`FinishReason::Stop`] when there is a vector or a score for all, [`FinishReason::Cancelled`] when the client left.
    pub reason: FinishReason,
    /// Tokens that the model read, those of all texts together.
    #[serde(default)]
    pub prompt_tokens: u32,
}

impl EmbeddingFinish {
    /// An end after so many tokens.
    pub fn new(reason: FinishReason, prompt_tokens: u32) -> Self {
        Self { reason, prompt_tokens }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_block_comes_back_as_it_went(index in any::<u32>(), values in prop::collection::vec(-1e9f32..1e9, 1..40), is_score in any::<bool>()) {
            let form = if is_score { EmbeddingForm::Score } else { EmbeddingForm::Vector };
            let header = EmbeddingHeader::new(form, index);
            let payload = EmbeddingBlock::encode(&header, &values).unwrap();
            prop_assert_eq!(EmbeddingBlock::decode(&payload).unwrap(), EmbeddingBlock { header, values });
            prop_assert!(EmbeddingBlock::decode(&payload[..payload.len() - 1]).is_err());
        }
    }

    #[test]
    fn a_block_without_values_or_of_another_form_is_damage() {
        let empty = EmbeddingBlock::encode(&EmbeddingHeader::new(EmbeddingForm::Vector, 0), &[]).unwrap();
        assert!(EmbeddingBlock::decode(&empty).is_err());
        let mut other = block::start(&serde_json::json!({"form": "matrix", "index": 0}), 4).unwrap();
        other.extend([0; 4]);
        assert!(EmbeddingBlock::decode(&other).is_err());
        assert!(EmbeddingBlock::decode(&[]).is_err());
    }

    #[test]
    fn an_input_says_how_much_its_answer_has() {
        for (input, count, form) in [
            (EmbeddingInput::texts(["a", "b"]), 2, EmbeddingForm::Vector),
            (EmbeddingInput::tokens(vec![vec![1], vec![2, 3], vec![4]]), 3, EmbeddingForm::Vector),
            (EmbeddingInput::rank("q", ["a"]), 1, EmbeddingForm::Score),
        ] {
            assert_eq!((input.count(), input.form()), (count, form), "{input:?}");
        }
    }
}
