"""Chat templates in the forms of published families: prompt, words and closing token of each."""

import re
from dataclasses import replace
from typing import NamedTuple

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mlx_dpo.preferences.chat import ChatFormat, chat_format
from mlx_dpo.preferences.encoding import FittedPair, PairEncoder
from mlx_dpo.records import Message, Preference
from tests.preferences.test_boundary import THOUGHTS
from tests.preferences.test_chat import turns

PLAIN = Preference(
    (Message("user", "Name a colour."),), turns("Blue is one."), turns("No."), kind="", id="1"
)
TOKEN = re.compile(
    r"<\|[^|<>]+\|>|<\|\w+>|<\w+\|>|<(?:start|end)_of_turn>|<(?:reserved|extra_id)_\d+>"
)
AFTER_THOUGHTS = "m.content.split('</think>')[-1]"


class Family(NamedTuple):
    r"""A template; `{}` in a turn stands for its words.

    Attributes:
        user: A user's turn.
        answer: An answer's, as finished conversations have it.
        opens: What follows the user's turn where the assistant is to answer.
        system: A system turn; None where the template refuses one.
        prompt: How the scored prompt ends; None for `opens`.
        lead: What is scored before the words.
        closes: The closing token; the EOS where the template writes none.
        words: What an answer's words become.
        ends: What follows a finished conversation.
        tail: What follows the words inside `answer` and is scored.
        codes: Of a plain pair.
        more: Further tokens that end an answer of the model.
    """

    user: str
    answer: str
    opens: str
    system: str | None
    closes: str
    prompt: str | None = None
    lead: str = ""
    words: str = "m.content"
    ends: str = ""
    tail: str = ""
    codes: tuple[str, ...] = ()
    more: tuple[str, ...] = ()

    def template(self) -> str:
        def turn(text: str, words: str) -> str:
            before, _, after = text.partition("{}")
            return f"{{{{ {before!r} + {words} + {after!r} }}}}"

        system = "{{ raise_exception('no system role') }}"
        if self.system is not None:
            system = turn(self.system, "m.content")
        return (
            "{% for m in messages %}{% if m.role == 'system' %}" + system
            + "{% elif m.role == 'user' %}" + turn(self.user, "m.content")
            + "{% else %}" + turn(self.answer, self.words) + "{% endif %}{% endfor %}"
            + f"{{% if add_generation_prompt %}}{{{{ {self.opens!r} }}}}"
            + f"{{% else %}}{{{{ {self.ends!r} }}}}{{% endif %}}"
        )  # fmt: skip


CHATML = Family(
    user="<|im_start|>user\n{}<|im_end|>\n",
    answer="<|im_start|>assistant\n{}<|im_end|>\n",
    opens="<|im_start|>assistant\n",
    system="<|im_start|>system\n{}<|im_end|>\n",
    closes="<|im_end|>",
)
ROLES = Family(
    user="<|user|>\n{}\n",
    answer="<|assistant|>\n{}<|endoftext|>",
    opens="<|assistant|>\n",
    system="<|system|>\n{}\n",
    closes="<|endoftext|>",
)
INST = Family("[INST] {} [/INST]", " {}</s>", "", "{}\n\n", closes="</s>", lead=" ")
HEADERS = Family(
    user="<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
    answer="<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
    opens="<|start_header_id|>assistant<|end_header_id|>\n\n",
    system="<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
    closes="<|eot_id|>",
)
GEMMA = Family(
    user="<start_of_turn>user\n{}<end_of_turn>\n",
    answer="<start_of_turn>model\n{}<end_of_turn>\n",
    opens="<start_of_turn>model\n",
    system=None,
    closes="<end_of_turn>",
)
DEEPSEEK = Family(
    "<|User|>{}", "<|Assistant|>{}<|end▁of▁sentence|>", "<|Assistant|>", "{}",
    closes="<|end▁of▁sentence|>",
)  # fmt: skip
COMMAND_R = Family(
    user="<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
    answer="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
    opens="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    system="<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
    closes="<|END_OF_TURN_TOKEN|>",
)
CHATBOT = "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>"
PHI3 = Family(
    user="<|user|>\n{}<|end|>\n",
    answer="<|assistant|>\n{}<|end|>\n",
    opens="<|assistant|>\n",
    system="<|system|>\n{}<|end|>\n",
    closes="<|end|>",
    ends="<|endoftext|>",
)
GLM = Family(
    user="<|user|>\n{}",
    answer="<|assistant|>\n{}",
    opens="<|assistant|>",
    system="<|system|>\n{}",
    closes="<|user|>",
    lead="\n",
    more=("<|endoftext|>", "<|user|>"),
)
FAMILIES = {
    "Llama 2": INST._replace(
        user="[INST] {} [/INST]", answer=" {} </s>", system="<<SYS>>\n{}\n<</SYS>>\n\n", tail=" "
    ),
    "Llama 3": HEADERS,
    "Llama 4": Family(
        user="<|header_start|>user<|header_end|>\n\n{}<|eot|>",
        answer="<|header_start|>assistant<|header_end|>\n\n{}<|eot|>",
        opens="<|header_start|>assistant<|header_end|>\n\n",
        system="<|header_start|>system<|header_end|>\n\n{}<|eot|>",
        closes="<|eot|>",
    ),
    "Mistral v1": INST._replace(answer="{}</s>", system=None, lead=""),
    "Mistral v3, Mixtral": INST,
    "Mistral Small": INST._replace(
        answer="{}</s>", system="[SYSTEM_PROMPT]{}[/SYSTEM_PROMPT]", lead=""
    ),
    "Qwen 2, SmolLM2, Yi, LFM2, InternLM": CHATML,
    "Qwen 3": CHATML._replace(
        answer="<|im_start|>assistant\n{}<|im_end|>\n",
        words="('' if '</think>' in m.content else '<think>\n\n</think>\n\n') + m.content",
        prompt="<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    "Qwen 3.5": CHATML._replace(
        opens="<|im_start|>assistant\n<think>\n",
        words="('' if '</think>' in m.content else '<think>\n\n</think>\n\n') + m.content",
        prompt="<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    "QwQ": CHATML._replace(opens="<|im_start|>assistant\n<think>\n", codes=("open-block",)),
    "Gemma 2": GEMMA,
    "Gemma 3": GEMMA._replace(system="{}\n\n"),
    "Gemma 4": Family(
        user="<|turn>user\n{}<turn|>\n",
        answer="<|turn>model\n{}<turn|>\n",
        opens="<|turn>model\n<|channel>thought\n<channel|>",
        system="<|turn>system\n{}<turn|>\n",
        closes="<turn|>",
    ),
    "Phi-3": PHI3,
    "Phi-4": CHATML._replace(
        user="<|im_start|>user<|im_sep|>{}<|im_end|>",
        answer="<|im_start|>assistant<|im_sep|>{}<|im_end|>",
        opens="<|im_start|>assistant<|im_sep|>",
    ),
    "DeepSeek V2": Family(
        "User: {}\n\n", "Assistant: {}</s>", "Assistant:", "{}\n\n", closes="</s>", lead=" "
    ),
    "DeepSeek V3": DEEPSEEK,
    "DeepSeek V3.1": DEEPSEEK._replace(
        answer="<|Assistant|></think>{}<|end▁of▁sentence|>",
        opens="<|Assistant|></think>",
        words=AFTER_THOUGHTS,
    ),
    "DeepSeek R1": DEEPSEEK._replace(
        opens="<|Assistant|><think>\n", words=AFTER_THOUGHTS, codes=("open-block",)
    ),
    "SmolLM3": CHATML._replace(system="<|im_start|>system\n<think> Thought </think>{}<|im_end|>\n"),
    "OLMo 2, Falcon 3": ROLES,
    "Granite 3": Family(
        user="<|start_of_role|>user<|end_of_role|>{}<|end_of_text|>\n",
        answer="<|start_of_role|>assistant<|end_of_role|>{}<|end_of_text|>\n",
        opens="<|start_of_role|>assistant<|end_of_role|>",
        system="<|start_of_role|>system<|end_of_role|>{}<|end_of_text|>\n",
        closes="<|end_of_text|>",
    ),
    "Command R": COMMAND_R,
    "Command R7B": COMMAND_R._replace(
        answer=CHATBOT + "{}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
        opens=CHATBOT,
        closes="<|END_RESPONSE|>",
    ),
    "Zephyr, TinyLlama, StableLM": ROLES._replace(
        user="<|user|>\n{}</s>\n", answer="<|assistant|>\n{}</s>\n", closes="</s>"
    ),
    "gpt-oss": Family(
        user="<|start|>user<|message|>{}<|end|>",
        answer="<|start|>assistant<|channel|>final<|message|>{}<|return|>",
        opens="<|start|>assistant",
        system="<|start|>developer<|message|># Instructions\n\n{}\n\n<|end|>",
        closes="<|return|>",
        prompt="<|start|>assistant<|channel|>final<|message|>",
        codes=("template-words",),
    ),
    "GLM-4": GLM,
    "GLM-4.5": GLM._replace(
        answer="<|assistant|>\n<think></think>\n{}",
        prompt="<|assistant|>\n<think></think>\n",
        lead="",
    ),
    "Nemotron 4": Family(
        "<extra_id_1>User\n{}\n<extra_id_1>Assistant\n", "{}\n", "", "<extra_id_0>System\n{}\n\n",
        closes="</s>", prompt="<extra_id_1>Assistant\n", tail="\n",
    ),
    "Nemotron 3": CHATML._replace(
        opens="<|im_start|>assistant\n<think>\n",
        words="('' if '</think>' in m.content else '<think></think>') + m.content",
        prompt="<|im_start|>assistant\n<think>\n</think>",
    ),
    "Hunyuan": Family(
        "<|startoftext|>{}<|extra_0|>", "{}<|eos|>", "", "<|startoftext|>{}<|extra_4|>",
        closes="<|eos|>", prompt="<|extra_0|>",
    ),
    "Baichuan 2": Family(
        "<reserved_106>{}", "<reserved_107>{}", "<reserved_107>", "{}", closes="</s>"
    ),
}  # fmt: skip
# Chosen, with thoughts in both answers, and what is told.
THINKING = {
    "Qwen 2, SmolLM2, Yi, LFM2, InternLM": (THOUGHTS, []),
    "Qwen 3": (THOUGHTS, []),
    "Qwen 3.5": ("Or red.\n</think>\n\nBlue.", []),
    "QwQ": ("Or red.\n</think>\n\nBlue.", []),
    "DeepSeek V3.1": (THOUGHTS, ["open-block"]),
    "DeepSeek R1": ("Or red.\n</think>\n\nBlue.", []),
    "Nemotron 3": ("Or red.\n</think>\n\nBlue.", []),
}


def chat_of(family: Family) -> ChatFormat:
    """A tokenizer of bytes and the tokens of a family, and its template."""
    template = family.template()
    special = sorted({*TOKEN.findall(template), family.closes, "<s>", "</s>"})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokens.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokens.add_tokens(["<think>", "</think>"])
    ends = family.more or (family.closes,)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokens, eos_token=ends[0], bos_token="<s>", chat_template=template
    )
    return chat_format(TokenizerWrapper(fast, eos_token_ids=fast.convert_tokens_to_ids(ends)))


def fitted(chat: ChatFormat, pair: Preference) -> tuple[FittedPair, list[str], list[str]]:
    (found,) = PairEncoder(chat, 4096)([pair])
    texts = [str(chat.tokenizer.decode(ids)) for ids in found.example]
    return found, texts, [note.code for note in found.notes]


@pytest.mark.parametrize("name", FAMILIES)
def test_words_and_closing_token_are_scored_and_the_system_turn_is_kept_or_refused(
    name: str,
) -> None:
    family = FAMILIES[name]
    chat = chat_of(family)
    assert chat.closing_text == family.closes
    _, (prompt, *answers), codes = fitted(chat, PLAIN)
    assert prompt.endswith(family.opens if family.prompt is None else family.prompt)
    end = family.tail + family.closes
    assert answers == [f"{family.lead}{text}{end}" for text in ("Blue is one.", "No.")]
    assert tuple(codes) == family.codes

    found, (prompt, *answers), codes = fitted(
        chat, replace(PLAIN, prompt=(Message("system", "Be brief."), *PLAIN.prompt))
    )
    if family.system is None:
        assert found.finding is not None
        assert found.finding.code == "template"
    else:
        assert "Be brief." in prompt
        assert answers[1] == f"{family.lead}No.{end}"
        assert tuple(codes) == family.codes


@pytest.mark.parametrize("name", THINKING)
def test_thoughts_begin_where_the_prompt_ends(name: str) -> None:
    chat, (chosen, expected) = chat_of(FAMILIES[name]), THINKING[name]
    pair = replace(PLAIN, chosen=turns(THOUGHTS), rejected=turns(THOUGHTS.replace("red", "grey")))
    _, texts, codes = fitted(chat, pair)
    assert texts[1] == chosen + chat.closing_text
    assert codes == expected


def test_one_answer_with_thoughts_keeps_the_empty_block_of_the_other() -> None:
    pair = replace(PLAIN, chosen=turns(THOUGHTS))
    _, texts, codes = fitted(chat_of(FAMILIES["Qwen 3"]), pair)
    assert texts[1:] == [THOUGHTS + "<|im_end|>", "<think>\n\n</think>\n\nNo.<|im_end|>"]
    assert codes == []
