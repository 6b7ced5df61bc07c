"""The languages that pages are written in: English phrases, and what stands for them in Chinese."""

from collections.abc import Callable, Mapping
from typing import Final

from apt import language as language_of_messages
from apt.console.errors import UsageError

LANGUAGES: Final = ("en", "zh-CN")

Translate = Callable[[str], str]

_ZH: Final[Mapping[str, str]] = {
    # page
    "Table": "数据表",
    "Charts": "图表",
    "Facts": "说明",
    "Models": "模型",
    "log scale": "对数刻度",
    "value": "值",
    "unknown": "未知",
    # model
    "Parameters by component": "各部分的参数量",
    "parameters": "参数",
    "component": "组成部分",
    "Parameters by type": "各数据类型的参数量",
    "type": "类型",
    "Parameters of each component of the model.": "模型各组成部分的参数量。",
    "Parameters stored in each data type.": "以各数据类型存储的参数量。",
    "embedding": "词嵌入",
    "attention": "注意力",
    "mlp": "前馈网络",
    "norm": "归一化",
    "head": "输出层",
    "other": "其他",
    "experts": "专家",
    "router": "路由",
    "Attention weights: root mean square": "注意力权重：均方根",
    "MLP weights: root mean square": "前馈网络权重：均方根",
    "Attention weights: largest magnitude": "注意力权重：最大绝对值",
    "MLP weights: largest magnitude": "前馈网络权重：最大绝对值",
    "Attention weights: stable rank": "注意力权重：稳定秩",
    "MLP weights: stable rank": "前馈网络权重：稳定秩",
    "root mean square of the values (sampled)": "数值的均方根（抽样）",
    "largest magnitude": "最大绝对值",
    "stable rank, of the full rank": "稳定秩占满秩的比例",
    "layer": "层",
    "Each line is one matrix, from the first layer to the last.": "每条线是一个矩阵，从第一层到最后一层。",
    "Stable rank: squared Frobenius norm over squared spectral norm.": "稳定秩：弗罗贝尼乌斯范数平方除以谱范数平方。",
    "Outliers: largest magnitude over the root mean square": "离群值：最大绝对值与均方根之比",
    "times the root mean square": "均方根的倍数",
    "The matrices whose largest value stands out most.": "最大值最突出的矩阵。",
    "tensor": "张量",
    "architecture": "架构",
    "size": "大小",
    "layers": "层数",
    "context": "上下文长度",
    "non-finite values": "非有限值",
    "format": "格式",
    "weights read": "读取的权重",
    "tensors": "张量数",
    "Weights and layers": "权重与各层",
    # run
    "Training loss": "训练损失",
    "step": "步",
    "Learning rate": "学习率",
    "Gradient norm": "梯度范数",
    "nats per token; lower is better": "每词元奈特数；越低越好",
    "training": "训练",
    "held out": "留出集",
    "bits per byte; lower is better": "每字节比特数；越低越好",
    "Held-out bits per byte": "留出集每字节比特数",
    "learning rate": "学习率",
    "gradient norm": "梯度范数",
    "steps": "步数",
    "loss": "损失",
    "first": "最初",
    "last": "最后",
    "best": "最佳",
    "Training curves": "训练曲线",
    "The loss of a training run over its steps.": "训练过程中损失随步数的变化。",
    "A figure of a training run over its steps.": "训练过程中一项指标随步数的变化。",
    # comparison
    "Comparison": "比较",
    "Perplexity": "困惑度",
    "perplexity": "困惑度",
    "perplexity; lower is better": "困惑度；越低越好",
    "Bits per byte": "每字节比特数",
    "Distance from the first model": "与第一个模型的距离",
    "KL divergence, nats per token; lower is better": "KL 散度，每词元奈特数；越低越好",
    "Same top token as the first model": "与第一个模型首选词元相同的比例",
    "higher is better": "越高越好",
    "Size on disk": "磁盘占用",
    "bytes of the weight files": "权重文件字节数",
    "Writing speed": "生成速度",
    "tokens per second, one sequence": "每秒词元数，单个序列",
    "model": "模型",
    "decode": "解码",
    "Each model's value with its 95 % interval.": "每个模型的值及其 95 % 置信区间。",
    "Each model's value.": "每个模型的值。",
    "× first": "与第一个之比",
    "text": "文本",
    "tokens": "词元数",
    "Report": "报告",
    "KL": "KL 散度",
}


def language(asked: str | None) -> str:
    """Return the language to write in: the one asked for, else that of messages (``APT_LANG``, the locale).

    :raises UsageError: for one that there is not.
    """
    word = asked or language_of_messages()
    plain = word.replace("_", "-").partition(".")[0].lower()
    if plain in ("zh", "zh-cn", "zh-hans"):
        return "zh-CN"
    if plain.partition("-")[0] == "en":
        return "en"
    raise UsageError(f"no page is written in {word!r}", hint=f"--lang {' or '.join(LANGUAGES)}")


def translator(lang: str) -> Translate:
    """Return the function that turns an English phrase into the language; an unknown phrase stays as it is."""
    return (lambda text: _ZH.get(text, text)) if lang == "zh-CN" else (lambda text: text)
