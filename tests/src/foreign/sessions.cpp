// A server that forgets to close its sessions: some KiB a second, given in its argument, among much more that is released.
#include <chrono>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

struct Session {
	std::string user, token;
	std::vector<int> pages;
};

static std::minstd_rand random_numbers;
static size_t sent;

class Sessions {
	std::vector<std::unique_ptr<Session>> all;

public:
	__attribute__((noinline)) void open_session(int number)
	{
		auto session = std::make_unique<Session>();
		session->user = "somebody with a name that is long enough for the heap";
		session->token = std::string(80, 'a' + number % 26);
		all.push_back(std::move(session));
	}
};

__attribute__((noinline)) void render_page()
{
	std::string page;
	for (int i = 0; i < 50; i++)
		page += "<li>item " + std::to_string(random_numbers()) + " of many that are on this page</li>";
	sent += page.size();
}

__attribute__((noinline)) void parse_request()
{
	std::map<std::string, std::string> headers;
	for (int i = 0; i < 20; i++)
		headers["a-header-with-a-long-name-" + std::to_string(random_numbers() % 1000)] = std::string(100, 'x');
	sent += headers.size();
}

int main(int count, char **words)
{
	// What a session takes, roughly.
	const double bytes = 270, rate = (count > 1 ? std::atof(words[1]) : 17) * 1024 / bytes;
	const auto begun = std::chrono::steady_clock::now();
	Sessions sessions;
	int opened = 0;
	for (;;) {
		for (int i = 0; i < 5; i++) {
			render_page();
			parse_request();
		}
		const std::chrono::duration<double> since = std::chrono::steady_clock::now() - begun;
		for (; opened < since.count() * rate; opened++)
			sessions.open_session(opened);
		std::this_thread::sleep_for(std::chrono::milliseconds(2));
	}
}
