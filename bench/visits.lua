-- Varied, realistic visits for wrk. All requests are rendered once, so that the load generator
-- takes as little of the machine as it can.

local agents = {
  "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
  "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Safari/605.1.15",
  "Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0",
  "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1",
  "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Mobile Safari/537.36",
  "curl/8.8.0",
}
local pages = {
  "https://www.example.com/",
  "https://www.example.com/products/red-shoes?colour=red&size=42",
  "https://blog.example.org/2024/06/why-we-count-visits",
  "https://news.example.net/world/a-rather-long-headline-that-ends-up-in-the-address",
}
local languages = { "en-GB,en;q=0.9", "de-DE,de;q=0.8,en;q=0.5", "fr", "nl-NL,nl;q=0.9,en-US;q=0.7" }

local rendered = {}
local turn = 0

function init()
  for i = 1, 960 do
    wrk.headers["User-Agent"] = agents[i % #agents + 1]
    wrk.headers["Referer"] = i % 8 ~= 0 and pages[i % #pages + 1] or nil
    wrk.headers["Accept-Language"] = languages[math.floor(i / 3) % #languages + 1]
    wrk.headers["Accept"] = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"
    wrk.headers["Accept-Encoding"] = "gzip, deflate, br"
    rendered[i] = wrk.format("GET", string.format("/track?site=%d&page=%d&w=%d", i % 17, i, 320 + i))
  end
end

function request()
  turn = turn % #rendered + 1
  return rendered[turn]
end
