import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.Executors;

/**
 * A server that stumbles over a null reference in each request, as the handlers of many do now and then: the virtual
 * machine makes an exception of the SIGSEGV, and the handler catches it.
 */
class Server {
    int visits;

    private static String stumble(Server absent) {
        try {
            return String.valueOf(absent.visits);
        } catch (NullPointerException exception) {
            return "null";
        }
    }

    private static void answer(HttpExchange exchange, byte[] page) throws IOException {
        exchange.getResponseHeaders().set("X-Stumbled", stumble(null));
        exchange.sendResponseHeaders(200, page.length);
        exchange.getResponseBody().write(page);
        exchange.close();
    }

    /** Its arguments are the port and the file with the page. */
    public static void main(String[] arguments) throws IOException {
        var page = Files.readAllBytes(Path.of(arguments[1]));
        var address = new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[0]));
        var server = HttpServer.create(address, 0);
        server.createContext("/page.txt", exchange -> answer(exchange, page));
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.start();
    }
}
