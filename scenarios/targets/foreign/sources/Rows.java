// Puts rows into H2, each in a transaction of its own, or prints the keys that are there.
import java.nio.file.*;
import java.sql.*;

public class Rows {
    public static void main(String[] words) throws Exception {
        String url = "jdbc:h2:file:" + Path.of("rows").toAbsolutePath();
        int last = Integer.parseInt(words[0]);
        try (Connection connection = DriverManager.getConnection(url, "sa", "")) {
            connection.createStatement().execute("CREATE TABLE IF NOT EXISTS rows (id INT PRIMARY KEY, body VARCHAR)");
            for (int key = 1; key <= last; key++) {
                mark("intent", key);
                PreparedStatement insert = connection.prepareStatement("INSERT INTO rows VALUES (?, ?)");
                insert.setInt(1, key);
                insert.setString(2, "x".repeat(5000));
                insert.executeUpdate();
                mark("ack", key);
            }
            ResultSet found = connection.createStatement().executeQuery("SELECT id, LENGTH(body) FROM rows");
            while (last == 0 && found.next()) {
                System.out.println(found.getInt(1) + " " + found.getInt(2));
            }
        }
    }

    static void mark(String kind, int key) throws Exception {
        String line = "\n{\"kind\": \"" + kind + "\", \"operation\": \"put\", \"key\": " + key + "}\n";
        Files.writeString(Path.of(System.getenv("CHAOS_MARKS")), line, StandardOpenOption.APPEND, StandardOpenOption.CREATE);
    }
}
