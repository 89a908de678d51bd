"""Lines that stand on pages and are not their text, in English and Chinese, by kind; and lines that only speak of such things. Written for these tests.

page, gone = planted(chance, "en", paragraphs)         # the page's lines, and the places of those that shall go
"""

import random
from collections.abc import Sequence

LINES: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "notice": (
            "This website uses cookies to improve your experience.", "We and our partners use cookies and similar technologies to personalise content and ads.", "Accept all cookies", "Cookie settings",
            "By continuing to browse the site you are agreeing to our use of cookies.", "By clicking Sign Up you agree to our Terms and that you have read our Privacy Policy.", "© 2024 Harbour Weekly Ltd. All rights reserved.",
            "Copyright 2019-2023 The Lamp Company", "Please enable JavaScript in your browser to view this page properly.", "JavaScript is disabled. For a better experience, please enable it before proceeding.",
            "Read our Privacy Policy and Terms of Service.", "Your browser does not support the video tag.", "You can unsubscribe at any time.", "This site is protected by reCAPTCHA and the Google Privacy Policy applies.",
            "This post may contain affiliate links.", "The views expressed here are those of the author alone.", "No part of this site may be reproduced without permission.", "This page requires JavaScript.",
        ),
        "navigation": (
            "Home | About us | Contact", "Read more »", "Continue reading →", "Share this article", "Share on Facebook", "Tweet", "Log in / Register", "Skip to main content", "Back to top", "Leave a comment",
            "Sign up for our weekly newsletter", "Previous", "Next »", "Follow us on Instagram", "Related articles", "You may also like", "Most popular", "Advertisement", "Posted on March 3, 2021 by admin", "Tags: lamps, towers, sea",
            "Filed under: History", "3 comments", "Add to cart", "Facebook  Twitter  Pinterest  Email", "Home > News > Local", "Privacy Policy | Terms of Use | Sitemap", "Subscribe now", "View all posts", "5 min read", "Click here to download",
            "Trending now", "Load more", "Toggle navigation", "Print", "Reply",
        ),
        "signs": ("* * *", "-----------------", "1 2 3 4 5 ... 12 »", "12/03/2021 14:22", "$49.99 - $59.99", "★★★★☆ (27)", "|||", "+44 20 7946 0958", "00:00 / 03:12", "<< 1 | 2 | 3 >>"),
        "capitals": ("SIGN UP TODAY FOR OUR BEST OFFERS", "FREE SHIPPING ON ALL ORDERS OVER FIFTY", "CALL NOW FOR A FREE QUOTE", "LIMITED TIME OFFER - BUY ONE GET ONE", "THE NUMBER ONE LAMP STORE"),
    },
    "zh": {
        "notice": (
            "本网站使用Cookie以改善您的浏览体验。", "继续浏览即表示您同意我们的隐私政策。", "版权所有 © 灯塔日报 未经授权不得转载", "京ICP备05067684号-3 京公网安备 11010202000001号", "转载请注明出处：灯塔网", "免责声明：以上内容仅代表作者个人观点，与本网无关。",
            "请启用JavaScript以正常浏览本页面。", "您的浏览器版本过低，请升级后访问。", "违法和不良信息举报电话：010-12345678", "本文不代表本站立场。", "如有侵权，请联系我们删除。", "隐私保护政策 | 用户协议 | 服务条款", "未经本报书面许可，任何单位不得转载、摘编。",
            "增值电信业务经营许可证：京B2-20200000", "接受所有Cookie", "版權聲明：本文版權歸燈塔網所有", "保留所有權利",
        ),
        "navigation": (
            "首页 > 新闻 > 国内", "登录 | 注册", "返回顶部", "上一篇：守塔人的冬天", "下一篇：海上的钟声", "分享到：微信 微博 QQ空间", "阅读全文", "查看更多", "相关阅读", "推荐阅读：灯塔的历史", "扫一扫，关注我们", "责任编辑：李明", "当前位置：首页 > 文化", "热门评论",
            "我要评论", "加入收藏", "设为首页", "联系我们 | 关于我们 | 网站地图", "友情链接", "【字体：大 中 小】", "打印本页", "关注公众号：灯塔日报", "点击查看大图", "浏览次数：1024", "发布时间：2021-03-05 10:20", "标签：灯塔 大海", "更多>>", "第1页", "返回列表", "繁體中文",
            "猜你喜欢", "手机版", "下載APP", "網友評論",
        ),
        "signs": ("* * *", "——————————", "1 2 3 4 5 … 12 »", "2021-03-05 10:20:33", "￥49.90 - ￥59.90", "★★★★☆（27）", "010-12345678", "00:00 / 03:12"),
        "capitals": ("SIGN UP TODAY FOR OUR BEST OFFERS", "WELCOME TO THE LAMP STORE ONLINE"),
    },
}  # fmt: skip
TEXTS: dict[str, tuple[str, ...]] = {
    "en": (
        "The ministry said the new privacy law would force platforms to change how they handle personal data.", "She baked three dozen cookies and carried them up to the tower.", "Share prices fell by 3 percent on Tuesday.",
        "“Read more books,” the keeper told the children, and they did.", "JavaScript was written in ten days in May 1995, and it shows in its type conversions.", "Copyright law in the eighteenth century protected engravings before it protected maps.",
        "At home he lit the stove.", "CHAPTER IX", "What was that?", "He said no.", "Next to the lamp stood a clock; above it hung a map.", "In 1911 the lamp cost 1,240 pounds, in 1912 only 980.", "NASA and ESA agreed on the date.",
        "Cookies are small text files that a server sends to a browser, which returns them with each later request.", "Contact between the two crews was lost at 9:40.", "Help came at dawn.", "About 300 people live on the island today.",
        "The terms of use of the land were settled by a court in Cork.", "Follow the path to the left until it meets the wall.", "Advertisement was a new word then.",
    ),
    "zh": (
        "新的隐私法要求平台改变处理个人信息的方式。", "她烤了三打饼干，端上了灯塔。", "首页上的照片是他父亲拍的。", "他把分享看作一种习惯。", "法院认定，该公司未经许可使用了原告的商标。", "“更多的船来了！”孩子们喊道。", "他在微博上写道：灯塔亮了。",
        "第三章　守塔人", "版权法保护作者的作品。", "1911年，这盏灯花了1240英镑，1912年只要980英镑。", "读者可以免费注册图书馆的账户。", "这与天气无关。", "举报人得到了保护。", "经营者应当取得许可证后方可营业。", "上一年的冬天格外冷。", "他没有回答。", "编辑部在二楼，窗子朝海。",
        "广告收入占全年收入的三成。", "联系不上岸边的人，他只好等到天亮。", "用户越来越多，服务却没有跟上。",
    ),
}  # fmt: skip
"""What stays although it has the words."""


def planted(chance: random.Random, language: str, paragraphs: Sequence[str]) -> tuple[list[str], dict[int, str]]:
    """Lines of a page made of these paragraphs with planted lines between them, and the kinds of the planted ones by their places."""
    lines, gone = [], {}
    for paragraph in paragraphs:
        for _ in range(chance.choice((0, 1, 1, 2))):
            kind = chance.choice(list(LINES[language]))
            gone[len(lines)] = kind
            lines.append(chance.choice(LINES[language][kind]))
        lines += [paragraph, *([chance.choice(TEXTS[language])] if chance.random() < 0.5 else [])]
    return lines, gone
