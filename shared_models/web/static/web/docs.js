// The page of the API at /docs: Swagger UI over the service's own description. In a file of its own, because the page's policy
// lets no script in the HTML run.
"use strict";

SwaggerUIBundle({ url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true });
