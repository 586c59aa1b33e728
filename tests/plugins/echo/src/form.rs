//! Answers that are kept to a form, byte by byte: of those that may come next it takes the one that its script would say, and else
//! any, as a model does that understands nothing. Sixteen of them count as a token.

use std::sync::OnceLock;

use aihost_plugin_api::{
    AnswerStart, AnswerSyntax, Context, FinishReason, Grammar, GrammarToken, GrammarVocabulary, LogitsProcessor,
    Result, TextInput, TextOutput, TextRequest, ToolChoice,
};

use crate::script::{self, Act};

/// The token that ends a text, behind those of all bytes.
const END: usize = 256;
/// Bytes that leave together.
const TOKEN_BYTES: usize = 16;
/// Most bytes of an answer that is not cut before.
const ANSWER_BYTES: usize = 16 << 10;
/// It says what it likes in letters.
const LETTERS: &[u8; 26] = b"abcdefghijklmnopqrstuvwxyz";

/// Answers a request whose answer is to be of a form.
pub(crate) fn answer(request: &TextRequest, message: &str, output: &TextOutput, ctx: &Context) -> Result<FinishReason> {
    let (syntax, start) = (AnswerSyntax::TAGGED, AnswerStart::PastReasoning);
    let Some(grammar) = vocabulary()?.grammar(request, syntax, start)? else { return Ok(FinishReason::Stop) };
    output.prompt(message.split_inclusive(' ').count() as u32, 0);
    output.read_as(syntax, start, &request.input);
    let script = scripted(request, message);
    say(grammar, request, &script, output, ctx)
}

fn vocabulary() -> Result<&'static GrammarVocabulary> {
    static VOCABULARY: OnceLock<Result<GrammarVocabulary>> = OnceLock::new();
    let made = VOCABULARY.get_or_init(|| {
        let bytes = (0..=255u8).map(|byte| GrammarToken::Bytes(vec![byte]));
        GrammarVocabulary::new(bytes.chain([GrammarToken::Special("<end>".to_owned())]), &[END as u32])
    });
    made.as_ref().map_err(Clone::clone)
}

/// What it would say: the calls of the script where calls are made, and else its text.
fn scripted(request: &TextRequest, message: &str) -> String {
    let acts = script::acts(&request.input, message);
    let calls = acts.iter().filter_map(|act| match act {
        Act::Call { name, arguments } => {
            Some(format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>"))
        }
        _ => None,
    });
    let calls: Vec<String> = calls.collect();
    let said = acts.iter().filter_map(|act| if let Act::Say(text) = act { Some(text.as_str()) } else { None });
    let is_forced = matches!(&request.input, TextInput::Chat { tool_choice, .. } if *tool_choice != ToolChoice::Auto);
    if is_forced || !calls.is_empty() { calls.join("\n") } else { said.collect() }
}

fn say(
    grammar: Grammar,
    request: &TextRequest,
    script: &str,
    output: &TextOutput,
    ctx: &Context,
) -> Result<FinishReason> {
    let Some(mut processor) = LogitsProcessor::with_grammar(request, &[], END + 1, Some(grammar))? else {
        return Ok(FinishReason::Stop);
    };
    let (mut script, mut draw) = (script.bytes().peekable(), request.sampling.seed.unwrap_or(1));
    let has_script = script.peek().is_some();
    let mut token: Vec<u8> = Vec::new();
    for said in 0..ANSWER_BYTES {
        ctx.check()?;
        let mut logits = [0.0; END + 1];
        processor.apply(&mut logits)?;
        let may = |byte: usize| logits[byte] > f32::NEG_INFINITY;
        let wanted = script.next_if(|byte| may(usize::from(*byte))).map(usize::from);
        // What its script ends, ends.
        let wanted = wanted.or((has_script && script.peek().is_none() && may(END)).then_some(END));
        // What has been open for long is closed, and what may end ends.
        let closes = [END, usize::from(b'"'), usize::from(b'}'), usize::from(b']')];
        let first = LETTERS.map(usize::from);
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let turn = (draw >> 33) as usize;
        let likes_to_close = said % 8 == 7 || !may(first[turn % first.len()]);
        let closing = closes.into_iter().filter(|_| likes_to_close);
        let letters = (0..first.len()).map(|i| first[(turn + i) % first.len()]);
        let any = (0..=END).map(|i| (turn + i) % (END + 1));
        let chosen = wanted.or_else(|| closing.chain(letters).chain(any).find(|byte| may(*byte)));
        let byte = chosen.and_then(|chosen| u8::try_from(chosen).ok());
        if let Some(byte) = byte {
            token.push(byte);
            processor.accept(u32::from(byte))?;
        }
        let is_over = byte.is_none() || processor.is_over();
        if is_over || token.len() == TOKEN_BYTES {
            if request.max_tokens.is_some_and(|most| output.completion_tokens() >= most) {
                return Ok(FinishReason::Length);
            }
            output.token(&std::mem::take(&mut token))?;
        }
        if is_over {
            return Ok(FinishReason::Stop);
        }
    }
    Ok(FinishReason::Length)
}
