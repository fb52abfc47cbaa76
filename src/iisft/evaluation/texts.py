"""The plain sentences of an evaluation in English and Chinese, as templates."""

ENGLISH, CHINESE = "en", "zh"
LANGUAGES = (ENGLISH, CHINESE)

# key -> English, Chinese
SENTENCES = {
    "generation-errors": (
        "{count} of {rows} rows ({rate}) are generation errors; every figure covers only "
        "the {generated} generated rows.",
        "{rows} 行中有 {count} 行（{rate}）生成出错；下面的数字都只算生成成功的 {generated} 行。",
    ),
    "nothing-generated": ("No row was generated.", "没有一行生成成功。"),
    "empty": (
        "{count} of {generated} answers ({rate}) are empty.",
        "{generated} 个回答中有 {count} 个（{rate}）是空的。",
    ),
    "cut-off": (
        "{count} of {generated} answers ({rate}) were cut off at the length limit.",
        "{generated} 个回答中有 {count} 个（{rate}）因到达长度上限而被截断。",
    ),
    "repeated": (
        "{count} of {generated} answers ({rate}) end in a passage repeated over and over.",
        "{generated} 个回答中有 {count} 个（{rate}）以不断重复的片段结尾。",
    ),
    "fenced-json": (
        "{count} of {generated} answers ({rate}) are JSON inside a code fence, which does not "
        "count as JSON.",
        "{generated} 个回答中有 {count} 个（{rate}）是代码块里的 JSON，不算有效 JSON。",
    ),
    "thoughts": (
        "{count} of {generated} answers ({rate}) begin with a thought, {characters} characters in "
        "all; what comes after it is judged.",
        "{generated} 个回答中有 {count} 个（{rate}）以思考开头，共 {characters} 个字符；"
        "只评判其后的内容。",
    ),
    "empty-thoughts": (
        "{count} of {thoughts} thoughts are empty: the template writes an empty thought into rows "
        "that have none, and it was trained. A template without thoughts, such as qwen3_nothink, "
        "trains none.",
        "{thoughts} 段思考中有 {count} 段是空的：模板在没有思考的行里写入空思考并参与训练。"
        "不带思考的模板（如 qwen3_nothink）不会如此。",
    ),
    "class": (
        "{name}: recall {recall}{span}, {right} of {support}; precision {precision}, {right} of "
        "{predicted}.",
        "{name}：召回率 {recall}{span}，{support} 中对 {right}；"
        "精确率 {precision}，{predicted} 中对 {right}。",
    ),
    "lopsided": (
        "The model answers {name} to {share} of the rows; it is right for {asked}.",
        "模型对 {share} 的行回答 {name}；应当如此的只有 {asked}。",
    ),
    "no-class": (
        "{count} answers have no class (not JSON, or without the key) and count as wrong.",
        "{count} 个回答没有类别（不是 JSON，或缺少该键），按错误计。",
    ),
    "not-better": (
        "{figure} {own}{span} is NOT better than {rivals}.",
        "{figure} {own}{span} 并不优于{rivals}。",
    ),
    "not-told-apart": (
        "{figure} {own}{span} can't be told apart from {rivals}: the interval includes it.",
        "{figure} {own}{span} 与{rivals}没有可靠差别：置信区间包含它。",
    ),
    "better": (
        "{figure} {own}{span} is better than {rivals}.",
        "{figure} {own}{span} 优于{rivals}。",
    ),
    "valid-json": (
        "{count} of {generated} generated answers are valid JSON: {rate}{span}.",
        "{generated} 个生成的回答中有 {count} 个是有效 JSON：{rate}{span}。",
    ),
    "schema": (
        "{count} of {generated} generated answers fit the schema: {rate}{span}.",
        "{generated} 个生成的回答中有 {count} 个符合 schema：{rate}{span}。",
    ),
    "echoed": (
        "{name} is copied from the input: right in {right} of {present} answers that have it.",
        "{name} 抄自输入：在含有它的 {present} 个回答中，{right} 个正确。",
    ),
    "missing-keys": (
        "Valid answers that lack keys of their reference: {count}.",
        "{count} 个有效回答缺少参考答案里的键。",
    ),
    "extra-keys": (
        "Valid answers with keys that are not in their reference: {count} ({keys}).",
        "{count} 个有效回答多出参考答案里没有的键：{keys}。",
    ),
    "text-sample": (
        "BLEU, ROUGE and chrF are computed on a random sample of {count} rows (--text-rows all "
        "uses every row).",
        "BLEU、ROUGE 和 chrF 只算了随机抽取的 {count} 行（--text-rows all 会算全部）。",
    ),
}
FIGURES = {
    "accuracy": ("Accuracy", "准确率"),
    "balanced_accuracy": ("Balanced accuracy", "平衡准确率"),
    "exact_match": ("Exact match", "完全一致率"),
    "rougel": ("ROUGE-L", "ROUGE-L"),
    "bleu4": ("BLEU-4", "BLEU-4"),
    "fields_right": ("Share of right fields", "正确字段的比例"),
}
RIVALS = {
    "most frequent answer": ("always giving the most frequent answer", "总是给出最常见的答案"),
    "copy of the input": ("copying the input", "照抄输入"),
    "base model": ("the base model", "基座模型"),
}
ALWAYS = ('always answering "{name}"', "总是回答“{name}”")
OR = (" or ", "或")
# Sentences that are more than a plain fact.
TONES = {
    "generation-errors": "warn",
    "nothing-generated": "bad",
    "empty": "warn",
    "cut-off": "warn",
    "repeated": "warn",
    "fenced-json": "warn",
    "empty-thoughts": "warn",
    "lopsided": "bad",
    "no-class": "warn",
    "not-better": "bad",
    "not-told-apart": "warn",
    "better": "good",
    "best": "good",
    "chance": "warn",
    "none-good": "bad",
    "eval-loss": "warn",
}
POINTS = ("points", "个百分点")
VERDICTS = {
    "best": (
        "{name} is best: {figure} {score} on the {rows} rows that all of them generated.",
        "{name} 最好：在都生成成功的 {rows} 行上，{figure}为 {score}。",
    ),
    "tied": ("The same figure: {others}.", "{others} 的数值相同。"),
    "tied-earlier": (
        "The same figure: {others}; the earliest step is named, as it was trained the least.",
        "{others} 的数值相同；选最早的一步，因为它训练得最少。",
    ),
    "sure": (
        "{other} ({score}) is {difference} worse: {won} rows right only in the best, {lost} only "
        "in {other}, {p}.",
        "{other}（{score}）差 {difference}：只有最好者对 {won} 行，"
        "只有 {other} 对 {lost} 行，{p}。",
    ),
    "chance": (
        "{other} ({score}) is {difference} worse: {won} rows right only in the best, {lost} only "
        "in {other}, {p}; that can be chance.",
        "{other}（{score}）差 {difference}：只有最好者对 {won} 行，"
        "只有 {other} 对 {lost} 行，{p}；可能只是偶然。",
    ),
    "none-good": (
        "Even the best is NOT better than the trivial answer '{rival}' ({score}).",
        "即使最好的也不优于简单的固定回答“{rival}”（{score}）。",
    ),
    "eval-loss": (
        "The lowest evaluation loss ({loss}) is that of {name}: the loss and the answers disagree.",
        "验证损失最低（{loss}）的是 {name}：损失与回答质量并不一致。",
    ),
}


def pick(pair: tuple[str, str], language: str) -> str:
    return pair[LANGUAGES.index(language)]
