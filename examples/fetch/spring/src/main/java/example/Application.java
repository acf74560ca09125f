package example;

import org.springframework.boot.CommandLineRunner;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.context.annotation.Bean;
import org.springframework.core.env.Environment;

/** Shows that the properties are there, where a data source would take them from. */
@SpringBootApplication
public class Application {
    public static void main(String[] arguments) {
        SpringApplication.run(Application.class, arguments);
    }

    @Bean
    CommandLineRunner show(Environment environment) {
        return arguments -> System.out.printf(
            "%s at %s:%s as %s, version %s%n",
            environment.getProperty("binding.type"),
            environment.getProperty("binding.host"),
            environment.getProperty("binding.port"),
            environment.getProperty("spring.datasource.username"),
            environment.getProperty("binding.version"));
    }
}
