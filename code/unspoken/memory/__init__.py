"""What agents bring along from earlier: exports of chats and notes, as pieces of text with where they come from."""
