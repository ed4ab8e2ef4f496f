"""The page that draws with one model, served beside the API and part of the browser export."""
