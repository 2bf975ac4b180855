"""What several folders of tests share: small worlds of data, servers, commands run in this process."""
