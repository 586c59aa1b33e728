//! The GGUF models of a repository, each in one file or in parts, and which of them fits a machine best. Pure: it looks at names and
//! sizes.

use std::collections::BTreeMap;

use crate::cli::auto::weights::part_of;
use crate::domain::Device;
use crate::store::HubFile;

/// Bits of a weight beyond which nothing is gained that is heard or read, by which a graphics card's choice is bounded.
const BITS_ON_A_CARD: u32 = 8;
/// The same on processors, where each weight costs time as well: a token takes as long as reading them all does.
const BITS_ON_CORES: u32 = 4;
/// Those that are made with most care among those of as many bits.
const USUAL: [&str; 8] = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K", "MXFP4", "BF16"];

/// A model of a repository in one quantisation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Variant {
    /// Its quantisation, in capitals; empty where its name does not tell.
    pub(super) quantisation: String,
    /// Its parts, in order.
    pub(super) files: Vec<HubFile>,
}

impl Variant {
    /// Bytes of all its parts.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).fold(0, u64::saturating_add)
    }

    /// How it is told from others.
    pub(super) fn label(&self) -> &str {
        match (self.quantisation.as_str(), self.files.first()) {
            ("", Some(file)) => &file.path,
            (quantisation, _) => quantisation,
        }
    }

    /// Bits of a weight, more or less.
    fn bits(&self) -> u32 {
        let name = self.quantisation.trim_start_matches("UD-");
        let digits: String =
            name.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(BITS_ON_A_CARD)
    }

    /// Whether it was meant by this word: its quantisation, or its file's path or name.
    pub(super) fn is_called(&self, word: &str) -> bool {
        let is_file = |file: &HubFile| {
            let name = file.path.rsplit('/').next().unwrap_or(&file.path);
            file.path == word || name == word || name.strip_suffix(".gguf") == Some(word)
        };
        self.quantisation.eq_ignore_ascii_case(word) || self.files.iter().any(is_file)
    }
}

/// The models among these files. Projectors and models that lack a part are none.
pub(super) fn variants(files: &[HubFile]) -> Vec<Variant> {
    let mut split: BTreeMap<(&str, &str, u64), BTreeMap<u64, &HubFile>> = BTreeMap::new();
    let mut found = Vec::new();
    for file in files.iter().filter(|file| is_model(&file.path)) {
        let (folder, name) = file.path.rsplit_once('/').unwrap_or(("", &file.path));
        match part_of(name) {
            Some((stem, number, count)) => {
                split.entry((folder, stem, count)).or_default().insert(number, file);
            }
            None => found.push(Variant { quantisation: quantisation(&file.path), files: vec![file.clone()] }),
        }
    }
    for ((folder, stem, count), parts) in split {
        if parts.len() as u64 == count {
            let quantisation = quantisation(&format!("{folder}/{stem}.gguf"));
            found.push(Variant { quantisation, files: parts.into_values().cloned().collect() });
        }
    }
    found
}

/// The best of them for a device whose memory they may take, by what each takes.
pub(super) fn best(variants: &[Variant], device: Device, fits: impl Fn(&Variant) -> bool) -> Option<&Variant> {
    let most = if device == Device::Cpu { BITS_ON_CORES } else { BITS_ON_A_CARD };
    let rank = |variant: &&Variant| {
        let bits = variant.bits();
        let usual = USUAL.contains(&variant.quantisation.trim_start_matches("UD-"));
        // Within the bound the most bits; beyond it the fewest.
        let within = bits <= most;
        (within, if within { i64::from(bits) } else { -i64::from(bits) }, usual, variant.bytes())
    };
    variants.iter().filter(|variant| fits(variant)).max_by_key(rank)
}

fn is_model(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    name.ends_with(".gguf") && !name.contains("mmproj") && !name.contains("imatrix")
}

/// The quantisation that a path tells: `UD-Q4_K_XL` of `x-UD-Q4_K_XL.gguf`, or of its folder.
fn quantisation(path: &str) -> String {
    let path = path.strip_suffix(".gguf").unwrap_or(path);
    let mut names = path.rsplit('/');
    let in_name = names.next().and_then(of_name);
    in_name.or_else(|| names.next().and_then(of_name)).unwrap_or_default()
}

fn of_name(name: &str) -> Option<String> {
    let upper = name.to_ascii_uppercase();
    let words: Vec<&str> = upper.split(['-', '.']).collect();
    let at = words.iter().rposition(|word| is_quantisation(word))?;
    let prefix = at.checked_sub(1).and_then(|before| words.get(before)).filter(|word| **word == "UD");
    Some(prefix.map_or_else(|| words[at].to_owned(), |prefix| format!("{prefix}-{}", words[at])))
}

fn is_quantisation(word: &str) -> bool {
    let rest = ["MXFP", "IQ", "TQ", "BF", "FP", "Q", "F"].iter().find_map(|prefix| word.strip_prefix(prefix));
    let Some(rest) = rest else { return false };
    let (bits, rest) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
    matches!(bits, "1" | "2" | "3" | "4" | "5" | "6" | "8" | "16" | "32") && (rest.is_empty() || rest.starts_with('_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, bytes: u64) -> HubFile {
        HubFile { path: path.to_owned(), bytes, sha256: None }
    }

    #[test]
    fn quantisations_are_told_by_names() {
        for (path, told) in [
            ("Qwen3-8B-Q4_K_M.gguf", "Q4_K_M"),
            ("qwen2.5-7b-instruct-q4_k_m.gguf", "Q4_K_M"),
            ("m.IQ3_XXS.gguf", "IQ3_XXS"),
            ("x-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
            ("BF16/x.gguf", "BF16"),
            ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
            ("x-f16.gguf", "F16"),
            ("Phi-3-mini-4k.gguf", ""),
            ("Q4/x.gguf", "Q4"),
        ] {
            assert_eq!(quantisation(path), told, "{path}");
        }
    }

    #[test]
    fn parts_are_one_model_and_projectors_none() {
        let files = [
            file("Q8_0/m-Q8_0-00002-of-00002.gguf", 3),
            file("Q8_0/m-Q8_0-00001-of-00002.gguf", 5),
            file("m-Q4_0.gguf", 4),
            file("m-Q6_K-00001-of-00002.gguf", 1),
            file("mmproj-m-F16.gguf", 1),
            file("imatrix.gguf", 1),
            file("README.md", 1),
        ];
        let found = variants(&files);
        let told: Vec<_> =
            found.iter().map(|variant| (variant.label(), variant.files.len(), variant.bytes())).collect();
        assert_eq!(told, [("Q4_0", 1, 4), ("Q8_0", 2, 8)], "of Q6_K a part is missing");
        assert_eq!(found[1].files[0].path, "Q8_0/m-Q8_0-00001-of-00002.gguf");
        assert!(found[1].is_called("q8_0") && found[0].is_called("m-Q4_0.gguf") && !found[0].is_called("q8_0"));
    }

    #[test]
    fn the_best_that_fits_is_by_bits_within_what_helps() {
        let files: Vec<HubFile> =
            [("F16", 160), ("Q8_0", 85), ("Q6_K", 66), ("Q4_K_S", 46), ("Q4_K_M", 49), ("IQ4_XS", 43), ("Q2_K", 32)]
                .iter()
                .map(|(name, bytes)| file(&format!("m-{name}.gguf"), *bytes))
                .collect();
        let all = variants(&files);
        let best = |device: Device, room: u64| best(&all, device, |one| one.bytes() <= room).map(Variant::label);
        assert_eq!(best(Device::Cuda(0), 1000), Some("Q8_0"), "more bits than 8 are of no use");
        assert_eq!(best(Device::Cuda(0), 70), Some("Q6_K"));
        assert_eq!(best(Device::Cuda(0), 48), Some("Q4_K_S"));
        assert_eq!(best(Device::Cpu, 1000), Some("Q4_K_M"), "of as many bits the usual one");
        assert_eq!(best(Device::Cpu, 40), Some("Q2_K"));
        assert_eq!(best(Device::Cpu, 10), None);
        let large = variants(&files[..1]);
        assert_eq!(
            super::best(&large, Device::Cpu, |_| true).map(Variant::label),
            Some("F16"),
            "there is nothing smaller"
        );
    }
}
