// A file of its own: the page's policy runs no script that stands in the page.
SwaggerUIBundle({ url: "/openapi.json", dom_id: "#swagger-ui", layout: "BaseLayout", deepLinking: true });
