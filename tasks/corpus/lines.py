"""Lines and paragraphs of a page that are not its text: notices, navigation, menus, rows of signs, shouting, repetitions. Opt-in (FilterConfig.clean_lines).

    clean("Home | News\\n\\nThe lamp was lit.\\nRead more", ("navigation",))  ==  ("The lamp was lit.", {"navigation": 2})

A line goes as a whole or stays as it is. English and Chinese phrases; Chinese is compared in Simplified characters. Rules count in what order they stand
in KINDS: a line has one reason. Recall and precision on planted lines, and what is lost of real main texts: tests/benchmarks/lines_quality.py.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

from tasks.corpus.textnorm import CJK, simplify

Kind = Literal["notice", "navigation", "signs", "capitals", "repeated", "menu"]
KINDS: tuple[Kind, ...] = get_args(Kind)
NOTICE_LENGTH, CHINESE_NOTICE_LENGTH = 320, 140
"""Characters of the longest line that can be a notice: a longer one speaks about privacy, it does not ask for consent."""
NAVIGATION_LENGTH = 120
LETTERS = 0.3
"""A line with a smaller share of letters among what is no space is one of signs."""
CAPITALS, CAPITAL_LETTERS = 0.8, 12
"""A line with more capitals among its letters, and at least so many letters, shouts."""
REPEATED_LENGTH = 16
"""Characters from which a line may not come again (a Han character counts two): shorter ones are answers and refrains."""
MENU_LINES, MENU_LENGTH = 6, 24
"""So many lines in a row, each so short, none numbered and none ending a sentence, are a menu."""

_NOTICE = re.compile(
    r"\b(?:we|site|website|page|store|blog|services?|partners|company|co) (?:may |also |and our partners )?(?:uses?|using|stores?|sets?) (?:\w+ ){0,3}cookies\b"
    r"|\b(?:accept|reject|manage|allow|decline|disable|enable) (?:all |our |the |your |optional |these )*cookies?\b|\bcookies? (?:settings|preferences|consent|notice|policy)\b"
    r"|\bby (?:continuing|using|clicking|browsing|visiting|closing|signing|submitting|subscribing)\b.{0,120}\b(?:agree|accept|consent)"
    r"|\ball rights reserved\b|^\W*(?:copyright\b|\(c\)|©).{0,80}\b(?:19|20)\d\d|©\s*(?:19|20)\d\d"
    r"|\b(?:enable|activate|turn on|allow|requires?|needs?)\b.{0,30}\bjavascript|\bjavascript (?:is |must be |has been |appears to be |seems to be )*(?:currently )?(?:disabled|turned off|required|enabled|not supported)"
    r"|\b(?:read|see|view|accept|agree to|under|review) (?:our|the) (?:full |updated )?(?:privacy (?:policy|notice|statement)|terms (?:of (?:use|service)|and conditions|& conditions))"
    r"|\b(?:your )?browser (?:does not|doesn't|is not|isn't) support|\bunsubscribe at any time|\bprotected by recaptcha|\bno part of this (?:site|website|publication) may be reproduced"
    r"|\b(?:this )?(?:article|post|page) (?:may )?contains? affiliate links|\bviews expressed .{0,80}(?:author|do not (?:necessarily )?reflect)",
    re.I,
)
_CHINESE_NOTICE = re.compile(
    r"版权(?:所有|归.{0,20}所有|声明)|保留(?:所有|一切)权利|未经.{0,16}(?:授权|许可|允许|同意).{0,16}(?:转载|复制|镜像|摘编|引用)|转载.{0,8}(?:注明|联系|须经|授权)|(?:禁止|谢绝|严禁)转载"
    r"|(?:免责|特别|郑重|版权)声明[:：]|不代表本[网站]|仅代表.{0,8}(?:作者|个人)|与本[网站].{0,8}无关|如有侵权|侵犯.{0,8}(?:版权|权益).{0,12}联系|ICP\s?[备证]|公网安备|(?:经营|传播|出版)许可证[号:：编]"
    r"|(?:本网?站?|我们|此网站).{0,8}(?:使用|采用).{0,8}cookies?|cookies?(?:政策|设置|声明)|(?:接受|同意|管理).{0,6}cookies?|(?:隐私|私隐)(?:权|保护)?(?:政策|声明|条款)|服务条款|(?:使用|会员|用户)(?:条款|协议)"
    r"|(?:启用|开启|打开|允许|需要|支持).{0,10}javascript|浏览器(?:不支持|版本过低|禁用|已禁用)|不良信息举报|举报(?:电话|邮箱)[:：]|如(?:您)?继续(?:使用|浏览).{0,20}(?:同意|接受)",
    re.I,
)
_LINK = re.compile(
    r"(?:home(?:page)?|about(?: us)?|contact(?: us)?|log ?(?:in|out)|sign ?(?:in|up|out)|register|subscribe(?: now| to .{1,40})?|search|menu|main menu|share|tweet|pin it|e-?mail(?: this| us)?|print|next|prev(?:ious)?|top|back to (?:top|home|.{1,20})"
    r"|(?:read|see|learn|view|show|load|find out|discover) (?:more|all|less)\b.{0,40}|continue reading.{0,60}|full (?:story|article)|skip to (?:main )?(?:content|navigation|footer)|jump to .{1,30}|toggle navigation"
    r"|facebook|twitter|x|instagram|pinterest|linked ?in|youtube|whatsapp|reddit|telegram|tumblr|tiktok|rss(?: feed)?|site ?map|faqs?|help|support|careers|jobs|advertise(?: with us)?|press|blog|news|shop|store|products|services|gallery|events|donate"
    r"|privacy(?: policy| notice)?|terms(?: of (?:use|service)| (?:and|&) conditions)?|cookie(?:s| policy)?|legal|accessibility|disclaimer|imprint|leave a (?:comment|reply)|reply|comments?(?: \(\d+\))?|(?:no|\d+) comments?|post (?:a )?comment|add (?:a )?comment|write a review"
    r"|add to (?:cart|basket|bag|wish ?list|favou?rites|compare)|buy now|check ?out|(?:my )?(?:account|cart|basket|wish ?list)|(?:related|recent|popular|latest|trending|more|other|recommended|featured|similar) (?:posts?|articles?|news|stories|products|links|reading|from .{1,30}|in .{1,30})|you (?:may|might) also (?:like|be interested in)|trending(?: now)?|most (?:read|popular|viewed)"
    r"|advertis(?:e)?ment|sponsored(?: content)?|share (?:this|on|via|to|with)\b.{0,40}|follow (?:us|me)\b.{0,40}|join (?:us|the conversation|our newsletter|our mailing list)|(?:sign up|subscribe) (?:for|to) (?:our|the) .{0,30}newsletter|newsletter|get the app|download (?:now|the app|pdf|app)|click (?:here|to) ?.{0,40}|tap (?:here|to) .{0,40}"
    r"|posted (?:on|by|in)\b.{0,60}|(?:tags?|categor(?:y|ies)|filed under|labels?|keywords)\s*:.{0,100}|published(?: on)?:? .{0,30}\d{4}|last updated.{0,30}|\d+ (?:min(?:ute)?s?) read|page \d+ of \d+|\d+ (?:shares?|likes?|views?|votes?)|like|dislike|follow|save|copy link|report|edit|close|ok|cancel|submit|loading|yes|no|(?:en|de|fr|es)|english|all|go)"
    r"(?:\s*[.…!:→»›>+-]+)?",
    re.I,
)
_CHINESE_LINK = re.compile(
    r"(?:[^，。]{0,6}首页|[^，。]{0,4}登[录陆]|[^，。]{0,4}注册(?:新用户)?|退出|(?:站内)?搜索|导航|菜单|目录|返回.{0,8}|回到顶部|(?:上|下|前|后)一?[页篇章条个](?:[:：].{0,60})?|末页|尾页|第\d+页|共\d+页.{0,20}|更多.{0,10}|(?:查看|阅读|浏览|展开|显示|加载)(?:更多|全文|原文|全部|剩余).{0,10}|点击(?:查看|进入|这里|此处|下载|播放|加载|图片).{0,20}"
    r"|分享(?:到|至|给|本文).{0,40}|分享|转发.{0,6}|收藏(?:本[站页文])?|加入收藏|设为首页|打印(?:本[页文])?|纠错|关闭(?:窗口|本页)?|(?:我要|发表|网友|最新|热门|全部|查看|已有\d*条?|文章)?评论(?:\(\d*\)|（\d*）|\d*条?)?|回复|点赞|举报|投诉|顶|踩|赞"
    r"|(?:相关|推荐|延伸|热门|精彩|最新|更多|编辑|往期|猜你喜欢)(?:阅读|新闻|文章|链接|推荐|报道|专题|内容|资讯|图片|视频|回顾|话题|标签)?(?:[:：].{0,40})?|关于(?:我们|本站|本网)|联系(?:我们|方式)|网站(?:地图|简介|声明|导航)|友情链接|广告(?:服务|合作|刊登|联系)?|招聘(?:信息)?|诚聘英才|帮助(?:中心)?|法律(?:声明|顾问).{0,20}|意见反馈|客服.{0,20}|诚征.{0,10}"
    r"|(?:新浪|腾讯|人民)?微[博信](?:分享)?|QQ(?:空间|好友|群)?|朋友圈|人人网?|开心网|豆瓣|百度贴吧|知乎|抖音|扫(?:一扫|码|描).{0,30}|长按.{0,20}二维码.{0,20}|(?:欢迎|请)?关注.{0,24}(?:公众号|微信|微博|二维码)(?:[:：].{0,20})?|(?:我要)?投稿.{0,20}|RSS(?:订阅)?|订阅.{0,10}|下载(?:APP|客户端|地址).{0,10}|手机(?:版|网|客户端)|电脑版|简体(?:中文)?|繁[體体](?:中文)?|English|无障碍"
    r"|(?:您|你)?(?:现在|当前|目前|所在)?(?:的)?位置[:：].{0,60}|.{0,4}(?:责任)?编辑[:：].{1,12}|责编[:：].{1,12}|[(（](?:编辑|责编|责任编辑|记者|校对).{1,10}[)）]|(?:编辑|记者|校对)[:：].{1,10}|标签[:：].{0,40}|关键[词字][:：].{0,40}|(?:字体|字号)[:：].{0,10}|[【\[]?(?:大|中|小)(?:[ |/]*(?:大|中|小)){1,2}[】\]]?|(?:阅读|浏览|点击|访问)(?:次数|量|数)?[:：]?\s?\d*次?|(?:发布|更新|发表)(?:时间|日期)[:：].{0,30}|热点|专题|图片|视频|新闻|财经|体育|娱乐|科技|军事|教育|汽车|房产|博客|论坛|邮箱|游戏|女性|旅游)"
    r"(?:\s*[.…!！:：→»›>+-]+)?",
    re.I,
)
_BETWEEN = re.compile(r"\s*(?:[|｜·•»›>/、┊│]|\s{2,}|\t|--|&gt;)\s*")
_TRAIL = re.compile(r"\s*(?:home(?:page)?|(?:.{0,6}位置\W*)?.{0,6}首页|main page)\s*(?:>|»|›|→|/|::|&gt;)", re.I)
"""The beginning of a trail from the home page."""
_BULLET = re.compile(r"^[\s•·*◆■►▶●○\-–—>»←→+#|()\[\]【】]+|[\s•·*|()\[\]【】]+$")
_SENTENCE = re.compile(r"[.!?…。！？；;:：,，\"”'’）)]$")


def clean(text: str, kinds: Sequence[str]) -> tuple[str, Counter[str]]:
    """The text without the lines of these kinds, and how many of each went. A blank line that a gap leaves beside another goes with it."""
    gone: Counter[str] = Counter()
    lines = text.split("\n")
    plain = simplify(text).split("\n") if CJK.search(text) else lines
    reasons = _reasons(lines if len(plain) != len(lines) else plain, frozenset(kinds))
    if not any(reasons):
        return text, gone
    kept: list[str] = []
    gap = False
    for line, reason in zip(lines, reasons, strict=True):
        if reason:
            gone[reason] += 1
            gap = True
        elif not (gap and not line.strip() and (not kept or not kept[-1].strip())):
            gap = gap and not line.strip()
            kept.append(line)
    return "\n".join(kept).strip("\n"), gone


def _reasons(lines: Sequence[str], kinds: frozenset[str]) -> list[str]:
    """Of each line, why it goes; '' where it stays."""
    seen: set[str] = set()
    reasons = [_reason(line.strip(), kinds, seen) for line in lines]
    if "menu" in kinds:
        inside: list[int] = []
        for place, line in enumerate([*lines, "."]):
            line = _BULLET.sub("", line)
            if line and (line[0].isdigit() or len(line) + sum(map(len, CJK.findall(line))) > MENU_LENGTH or _SENTENCE.search(line)):
                for n in inside if len(inside) >= MENU_LINES else ():
                    reasons[n] = reasons[n] or "menu"
                inside = []
            elif line:
                inside.append(place)
    return reasons


def _reason(line: str, kinds: frozenset[str], seen: set[str]) -> str:
    if not line:
        return ""
    han = sum(map(len, CJK.findall(line)))
    short, short_chinese = len(line) <= NOTICE_LENGTH, han and len(line) <= CHINESE_NOTICE_LENGTH
    if "notice" in kinds and ((short and _NOTICE.search(line)) or (short_chinese and _CHINESE_NOTICE.search(line))):
        return "notice"
    if "navigation" in kinds and len(line) <= NAVIGATION_LENGTH:
        pieces = [piece for piece in (_BULLET.sub("", piece) for piece in _BETWEEN.split(line)) if piece]
        if _TRAIL.match(line) or (pieces and all(_LINK.fullmatch(piece) or (han and _CHINESE_LINK.fullmatch(piece)) for piece in pieces)):
            return "navigation"
    solid = [c for c in line if not c.isspace() and c.isprintable()]
    letters = sum(map(str.isalpha, solid))
    if "signs" in kinds and solid and letters < LETTERS * len(solid):
        return "signs"
    if "capitals" in kinds and letters >= CAPITAL_LETTERS and sum(map(str.isupper, solid)) > CAPITALS * letters:
        return "capitals"
    if "repeated" in kinds and len(line) + han >= REPEATED_LENGTH:
        if line in seen:
            return "repeated"
        seen.add(line)
    return ""
